"""Records the demo as an animated SVG: `make recording` writes docs/demo.svg.

The demo runs in a terminal of its own (a pty, and pyte to read what it draws), at its own speed. A few times a
second the screen is looked at. The drawing holds each line of text once; styles show it while it was there. A
viewer that doesn't animate, or whose owner wants no motion, shows the end.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby

import pyte

from deploy.bootstrap import ROOT, VENV

TARGET = ROOT / "docs" / "demo.svg"
COMMAND = [str(VENV / "bin" / "callboard"), "demo"]
PROMPT = "\x1b[32m$\x1b[0m make demo\r\n"

COLUMNS, LINES = 104, 44
FRAMES_A_SECOND = 3
LAST_FRAME_SECONDS = 10.0

CHARACTER, LINE, MARGIN, HEAD = 8.4, 19, 18, 34  # pixels
INK, PAPER = "#d6dde4", "#10181f"
COLOURS = {
    "black": "#4b5661",
    "red": "#f47067",
    "green": "#6bc46d",
    "brown": "#dcb158",  # pyte's word for yellow
    "blue": "#6cb6ff",
    "magenta": "#dcbdfb",
    "cyan": "#39c5cf",
    "white": "#d6dde4",
    "brightblack": "#8b96a1",
    "default": INK,
}


@dataclass(frozen=True, slots=True)
class Run:
    """Characters of one look, beside each other in a line."""

    column: int
    text: str
    colour: str
    bold: bool


Line = tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """What the screen showed from a moment on, in seconds after the start."""

    at: float
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Stretch:
    """A line that stood in a place from one frame to another (exclusive)."""

    line: Line
    row: int
    first: int
    until: int


def main() -> int:
    frames, code = record(COMMAND)
    if code:
        print(f"The demo ended with exit code {code}, so {TARGET.relative_to(ROOT)} stays as it was:")
        print("\n".join(text for line in frames[-1].lines if (text := "".join(run.text for run in line))))
        return code
    drawing = draw(frames)
    TARGET.write_text(drawing, encoding="utf-8")
    seconds = frames[-1].at
    print(f"{TARGET.relative_to(ROOT)}: {len(drawing) / 1000:.0f} kB, {len(frames)} frames, {seconds:.0f} s")
    return 0


# Recording


def record(command: list[str]) -> tuple[list[Frame], int]:
    """Run a command in a terminal; returns what it showed and its exit code."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    stream.feed(PROMPT.encode())
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "TMPDIR": "/tmp"}  # noqa: S108  short in the picture
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    began = time.monotonic()
    frames = [Frame(0.0, look_at(screen))]
    for chunk in chunks(ours):
        stream.feed(chunk)
        now = time.monotonic() - began
        if now - frames[-1].at >= 1 / FRAMES_A_SECOND and (lines := look_at(screen)) != frames[-1].lines:
            frames.append(Frame(now, lines))
    frames.append(Frame(time.monotonic() - began, look_at(screen)))
    os.close(ours)
    return frames, process.wait()


def chunks(terminal: int) -> Iterator[bytes]:
    """What is written to a terminal, as it comes; nothing now and then, so that time goes on."""
    while True:
        if not select.select([terminal], [], [], 0.05)[0]:
            yield b""
            continue
        try:
            chunk = os.read(terminal, 65_536)
        except OSError:  # Linux' way to say that nobody has it open any more
            return
        if not chunk:
            return
        yield chunk


def look_at(screen: pyte.Screen) -> tuple[Line, ...]:
    """The lines that the screen shows now."""
    return tuple(read_line(screen, row) for row in range(LINES))


def read_line(screen: pyte.Screen, row: int) -> Line:
    cells = [screen.buffer[row][column] for column in range(COLUMNS)]
    runs = []
    for look, group in groupby(enumerate(cells), key=lambda cell: (cell[1].fg, cell[1].bold)):
        taken = list(group)
        text = "".join(cell.data for _, cell in taken)
        if stripped := text.strip():
            start = taken[0][0] + len(text) - len(text.lstrip())
            runs.append(Run(start, stripped, look[0], look[1]))
    return tuple(runs)


# Drawing


def draw(frames: list[Frame]) -> str:
    """The frames as one SVG."""
    height = max(row + 1 for frame in frames for row, line in enumerate(frame.lines) if line)
    stretches = list(find_stretches(frames, height))
    names = {line: f"l{number}" for number, line in enumerate(dict.fromkeys(s.line for s in stretches))}
    spans = list(dict.fromkeys((s.first, s.until) for s in stretches))
    wide, high = round(COLUMNS * CHARACTER + 2 * MARGIN), height * LINE + HEAD + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" fill="{INK}">',
        "<title>make demo: real jobs, a kill -9 in their midst, nothing lost</title>",
        f"<style>{style(frames, spans)}</style>",
        "<defs>",
        *(f'<g id="{name}">{draw_line(line)}</g>' for line, name in names.items()),
        "</defs>",
        f'<rect width="{wide}" height="{high}" rx="10" fill="{PAPER}"/>',
        *(
            f'<circle cx="{20 + 18 * number}" cy="18" r="5.5" fill="{colour}"/>'
            for number, colour in enumerate(("#f47067", "#dcb158", "#6bc46d"))
        ),
    ]
    for stretch in stretches:
        y = HEAD + stretch.row * LINE + 14
        show = f"s{spans.index((stretch.first, stretch.until))}"
        parts.append(f'<use href="#{names[stretch.line]}" y="{y}" class="{show}"/>')
    return "\n".join([*parts, "</svg>", ""])


def find_stretches(frames: list[Frame], height: int) -> Iterator[Stretch]:
    """For each row of the screen, what stood there and for how long."""
    for row in range(height):
        first = 0
        for line, group in groupby(frame.lines[row] for frame in frames):
            until = first + len(list(group))
            if line:
                yield Stretch(line, row, first, until)
            first = until


def draw_line(line: Line) -> str:
    return "".join(
        f'<text x="{MARGIN + run.column * CHARACTER:.1f}" textLength="{len(run.text) * CHARACTER:.1f}"'
        f"{look(run)}>{escape(run.text, quote=False)}</text>"
        for run in line
    )


def look(run: Run) -> str:
    colour = COLOURS.get(run.colour, f"#{run.colour}")  # otherwise pyte gives six hexadecimal digits
    fill = "" if colour == INK else f' fill="{colour}"'
    return f'{fill} font-weight="bold"' if run.bold else fill


def style(frames: list[Frame], spans: Iterable[tuple[int, int]]) -> str:
    """When each stretch shows: hidden and shown by keyframes over the whole time, again and again."""
    whole = frames[-1].at + LAST_FRAME_SECONDS
    rules = [
        "text{white-space:pre;font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace}",
        f"use{{visibility:hidden;animation:{whole:.1f}s steps(1,end) infinite}}",
    ]
    for number, (first, until) in enumerate(spans):
        is_last = until == len(frames)
        begin = 100 * frames[first].at / whole
        end = 100.0 if is_last else 100 * frames[until].at / whole
        moments = ["0%{visibility:hidden}"] if begin else []
        moments.append(f"{begin:.2f}%{{visibility:visible}}")
        if not is_last:
            moments.append(f"{end:.2f}%{{visibility:hidden}}")
        rules.append(f"@keyframes k{number}{{{''.join(moments)}}}")
        shown = "visibility:visible;" if is_last else ""
        rules.append(f".s{number}{{{shown}animation-name:k{number}}}")
    rules.append("@media (prefers-reduced-motion:reduce){use{animation:none!important}}")
    return "".join(rules)


if __name__ == "__main__":
    sys.exit(main())
