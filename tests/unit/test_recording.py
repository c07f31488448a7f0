from __future__ import annotations

import re
import sys
from xml.etree import ElementTree

from deploy.recording import LAST_FRAME_SECONDS, Frame, Run, draw, record

SVG = "{http://www.w3.org/2000/svg}"


def line(text: str, colour: str = "default") -> tuple[Run, ...]:
    return (Run(0, text, colour, bold=False),)


def shown_at(drawing: str, seconds: float) -> set[str]:
    """The texts that a viewer shows at a moment of the animation."""
    root = ElementTree.fromstring(drawing)
    style = root.findtext(f"{SVG}style") or ""
    whole = float(re.search(r"animation:([\d.]+)s", style)[1])  # type: ignore[index]
    texts = {g.get("id"): "".join(g.itertext()) for g in root.iter(f"{SVG}g")}
    shown = set()
    for use in root.iter(f"{SVG}use"):
        name = use.get("class", "").replace("s", "k")
        keyframes = re.search(rf"@keyframes {name}\{{((?:[^{{}}]*\{{[^}}]*\}})*)\}}", style)[1]  # type: ignore[index]
        now = "hidden"
        for percent, visibility in re.findall(r"([\d.]+)%\{visibility:(\w+)\}", keyframes):
            if float(percent) <= 100 * seconds / whole:
                now = visibility
        if now == "visible":
            shown.add(texts[use.get("href", "").removeprefix("#")])
    return shown


def test_a_line_shows_while_it_stood_on_the_screen() -> None:
    frames = [
        Frame(0.0, (line("first"), ())),
        Frame(2.0, (line("first"), line("below"))),
        Frame(4.0, (line("second"), ())),
    ]
    drawing = draw(frames)
    assert shown_at(drawing, 1.0) == {"first"}
    assert shown_at(drawing, 3.0) == {"first", "below"}
    assert shown_at(drawing, 4.0 + LAST_FRAME_SECONDS - 1) == {"second"}


def test_a_viewer_that_does_not_animate_shows_the_end() -> None:
    drawing = draw([Frame(0.0, (line("begin"),)), Frame(1.0, (line("end"),))])
    assert re.findall(r"\.s(\d+)\{visibility:visible", drawing) == ["1"]


def test_text_is_escaped_and_kept_in_its_columns() -> None:
    drawing = draw([Frame(0.0, ((Run(4, "a < b & c", "red", bold=True),),))])
    text = next(ElementTree.fromstring(drawing).iter(f"{SVG}text"))
    assert text.text == "a < b & c"
    assert text.get("font-weight") == "bold"


def test_a_command_is_recorded_in_colour_and_with_its_exit_code() -> None:
    frames, code = record([sys.executable, "-c", r"print('\033[32mgreen\033[0m plain'); raise SystemExit(3)"])
    assert code == 3
    runs = [run for line in frames[-1].lines for run in line]
    assert Run(0, "green", "green", bold=False) in runs
    assert any(run.text == "plain" for run in runs)
