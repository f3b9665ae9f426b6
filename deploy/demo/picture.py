"""``make demo-picture``: runs the demo in a pseudo-terminal and writes its last screen to docs/demo.svg."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / "build" / "demo"
PICTURE = ROOT / "docs" / "demo.svg"
COLUMNS, LINES = 116, 50
FONTS = "Liberation Mono,DejaVu Sans Mono,Menlo,monospace"
_TOKEN = re.compile(r"\x1b\[(\d*)A|(\x1b\[2K)|(\r?\n)|\x1b\[\?25[lh]|\r|(\x1b\[[\d;]*m|[^\x1b\r\n]+)")


def main() -> int:
    """Runs the demo, shows its output meanwhile, and writes the picture if it ended well."""
    shutil.rmtree(STATE, ignore_errors=True)
    command = [sys.executable, str(ROOT / "deploy" / "demo"), "--state", str(STATE), "--no-wait"]
    output, code = captured(command)
    if code == 0:
        PICTURE.write_text(svg(screen(output)), encoding="utf-8")
        print(f"wrote {PICTURE.relative_to(ROOT)}")
    return code


def captured(command: list[str]) -> tuple[str, int]:
    """What a command writes to a terminal, and its exit code."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    with subprocess.Popen(
        command, stdin=inner, stdout=inner, stderr=inner, cwd=ROOT, env=environ | {"TERM": "xterm-256color"}
    ) as process:
        os.close(inner)
        chunks = []
        while chunk := _read(outer):
            chunks.append(chunk)
            os.write(sys.stdout.fileno(), chunk)
    os.close(outer)
    return b"".join(chunks).decode(), process.returncode


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux reports EIO once every process has closed the other end
        return b""


def screen(output: str) -> list[str]:
    """The lines that are left on the terminal, with their colours. Understands the sequences that rich writes."""
    lines, row = [""], 0
    for up, erased, newline, text in _TOKEN.findall(output):
        if up:
            row -= int(up)
        elif erased:
            lines[row] = ""
        elif newline:
            row += 1
            lines += [""] * (row + 1 - len(lines))
        else:
            lines[row] += text
    return lines


def svg(lines: list[str]) -> str:
    """The lines as a picture of a terminal."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    while lines and not lines[-1].strip():
        lines.pop()
    console.print(Text.from_ansi("\n".join(lines)))
    picture = console.export_svg(title="make demo", unique_id="demo")
    # a picture must not load fonts from another host
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL).replace("Fira Code, monospace", FONTS)
    return "".join(f"{line.rstrip()}\n" for line in picture.splitlines())


if __name__ == "__main__":
    sys.exit(main())
