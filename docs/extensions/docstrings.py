"""Sphinx extension: the sections of fastrnn's docstrings, as reStructuredText.

A section is a name over a line of dashes. Its entries are `name : what it is`, with further lines indented; an entry of
Raises may also begin within a line, after the end of a sentence.
"""

import re

LISTS = {"Parameters", "Attributes"}
TEXTS = {"Returns", "Notes", "Examples"}
SECTIONS = LISTS | TEXTS | {"Raises"}
ENTRY = re.compile(r"^(?P<names>\*{0,2}\w[\w., *]*?) : (?P<text>.*)$")
SHORT = 75  # characters of a line that was not wrapped
MADE = re.compile(r"\b[Mm]ade by\b|\bMake one with\b|\bWhat `\w+` returns\b|returns one for such|The result of")
BAR = re.compile(r"\|(?=(?:[^`]*`[^`]*`)*[^`]*$)")  # outside of backticks: no substitution
ERROR = re.compile(r"(?:^|(?<=[.;:] ))((?:[A-Z]\w*(?:Error|Full|Warning)(?:, )?)+) : ")


def _parts(lines):
    """(section or "", its lines) for each part of a docstring."""
    name, found = "", []
    for i, line in enumerate(lines):
        if line in SECTIONS and i + 1 < len(lines) and re.fullmatch(r"-+", lines[i + 1]):
            yield name, found
            name, found = line, []
        elif not (re.fullmatch(r"-+", line) and i and lines[i - 1] in SECTIONS):
            found.append(line)
    yield name, found


def _definitions(lines):
    """Entries `name : text` as a definition list; other lines stay a paragraph."""
    made, inside = [], False
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        entry = ENTRY.match(line)
        if entry:
            term = ", ".join(f"``{name.strip()}``" for name in entry["names"].split(","))
            if re.match(r"    [A-Z]", after) and len(line) < SHORT:  # a type; what it is comes below
                made += ["", f"{term} : {entry['text']}"]
            else:
                made += ["", term, f"    {entry['text']}"]
            inside = True
        elif line.startswith("    ") and inside:
            made.append("    " + line.strip())
        elif line.strip() and inside and made[-1].startswith("    "):
            made.append("    " + line)  # a wrapped entry
        else:
            made.append(line)
    return [*made, ""]


def _paragraphs(lines):
    """Text outside of sections: a paragraph that begins with an entry is a list of entries."""
    made, paragraph = [], []
    for line in [*lines, ""]:
        if line.strip():
            paragraph.append(line)
            continue
        made += [*(_definitions(paragraph) if paragraph and ENTRY.match(paragraph[0]) else paragraph), ""]
        paragraph = []
    return made


def _errors(lines):
    """The errors of Raises as a definition list, with the names as references."""
    text = " ".join(line.strip() for line in lines if line.strip())
    pieces = ERROR.split(text)
    made = [pieces[0].strip(), ""] if pieces[0].strip() else []
    for names, what in zip(pieces[1::2], pieces[2::2], strict=True):
        shown = ", ".join(f":py:exc:`{name}`" for name in names.rstrip(", ").split(", "))
        made += [shown, f"    {what.strip()}", ""]
    return made


def convert(lines):
    """The lines of a docstring as reStructuredText."""
    made = []
    for section, part in _parts(lines):
        if section:
            made += ["", f".. rubric:: {section}", ""]
        if section in LISTS:
            made += _definitions(part)
        elif section == "Raises":
            made += _errors(part)
        else:
            made += _paragraphs(part)
    return [BAR.sub(r"\|", line) for line in made]


def _process(_app, _what, _name, _obj, _options, lines):
    lines[:] = convert(lines)


def _signature(_app, what, _name, obj, _options, signature, returned):
    """No arguments for a class that a function makes: callers don't pass them."""
    if what == "class" and MADE.search((obj.__doc__ or "").partition("\n\n")[0]):
        return "", None
    return signature, returned


def setup(app):
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
