"""The text part says what the HTML says, and can be read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mailer.plain_text import to_text


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>One</p><p>Two<br>Three</p>", "One\n\nTwo\nThree"),
        ("<h1>Head</h1>\n  words   in\n a row", "Head\n\nwords in a row"),
        ("<ul><li>a</li><li>b <b>c</b></li></ul>", "- a\n- b c"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table>", "a b\nc d"),
        ("<a href='https://x.org/a?b=1&amp;c=2'>here</a>", "here (https://x.org/a?b=1&c=2)"),
        ("<a href='https://x.org/'>https://x.org/</a>", "https://x.org/"),
        ("<a href='mailto:a@x.org'>a@x.org</a> <a href='#top'>up</a>", "a@x.org up"),
        ("<a href='https://x.org/'><img src='x' alt='Our shop'></a>", "Our shop (https://x.org/)"),
        ("a &lt;b&gt; &amp;amp; &nbsp;c", "a <b> &amp; c"),
        ("<head><title>t</title><style>p {}</style></head><body><script>x()</script>seen</body>", "seen"),
        ("<div style='DISPLAY: none'>x</div>seen", "seen"),
        ("<div style='display: none'>a<div>b<br></div><img>c</div>seen<p>too</p>", "seen\n\ntoo"),
        ("<!-- comment --><!--[if mso]><p>old</p><![endif]-->seen", "seen"),
        ("<p>unclosed <b>bold", "unclosed bold"),
        ("", ""),
    ],
)
def test_html_reads_as_text(html: str, text: str) -> None:
    assert to_text(html) == text + "\n"


@given(st.text(alphabet="<>/abp \"'=&;!-\n") | st.text())
def test_any_html_gives_some_text(html: str) -> None:
    assert to_text(html).endswith("\n")
