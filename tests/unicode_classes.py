#!/usr/bin/env python3
"""Writes tests/unicode_classes.h: letters, numbers and white space of Unicode as ranges of code points, from the
unicodedata of the Python that runs it. Running the tests needs neither this script nor Python.

SPDX-License-Identifier: MIT
"""

import unicodedata
from pathlib import Path

# Unicode's property White_Space; Python's isspace() has four control characters more
SPACE = {*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}


def char_class(code):
    """The class of a code point as mamba.c's CharClass."""
    return 3 if code in SPACE else {"L": 1, "N": 2}.get(unicodedata.category(chr(code))[0], 0)


def ranges():
    """Yields [first, last, class] in ascending order."""
    current = None
    for code in range(0x110000):
        kind = char_class(code)
        if current and current[2] == kind:
            current[1] = code
            continue
        if current and current[2]:
            yield current
        current = [code, code, kind]
    if current[2]:
        yield current


def main():
    rows, line = [], "   "
    for first, last, kind in ranges():
        item = f" {{{first:#x}, {last:#x}, {kind}}},"
        if len(line + item) > 120:
            rows.append(line)
            line = "   "
        line += item
    rows.append(line)
    text = f"""/* Letters (1), numbers (2) and white space (3) of Unicode {unicodedata.unidata_version}, by tests/unicode_classes.py.
   SPDX-License-Identifier: MIT */
static const CharRange unicode_classes[] = {{
"""
    Path(__file__).with_suffix(".h").write_text(text + "\n".join(rows) + "\n};\n", newline="\n")


if __name__ == "__main__":
    main()
