# SPDX-License-Identifier: Apache-2.0
"""The interfaces as `dbus/org.triaged.Triage1.xml` has them: every signature is taken from there, and introspection serves it."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from xml.parsers import expat  # not ElementTree: half a megabyte

DOCTYPE = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)
_EMITS_CHANGED = "org.freedesktop.DBus.Property.EmitsChangedSignal"


@dataclass(frozen=True)
class Method:
    """A method's signatures; `arguments` is how many values it takes."""

    takes: str
    gives: str
    arguments: int


@dataclass(frozen=True)
class Property:
    """A property's signature, and whether a change of it is announced ("true", "invalidates", "const" or "false")."""

    signature: str
    emits_changed: str = "true"


@dataclass(frozen=True)
class Interface:
    """One interface, with its XML as introspection shows it."""

    name: str
    xml: str
    methods: Mapping[str, Method] = field(default_factory=dict)
    properties: Mapping[str, Property] = field(default_factory=dict)
    signals: Mapping[str, str] = field(default_factory=dict)


class _Element:
    """An element of an introspection document: no text is in any."""

    def __init__(self, tag: str, attributes: Mapping[str, str]) -> None:
        self.tag = tag
        self.attrib = attributes
        self.children: list[_Element] = []

    def iter(self, tag: str) -> Iterator[_Element]:
        """Those of that tag in it, at any depth, in their order."""
        for child in self.children:
            if child.tag == tag:
                yield child
            yield from child.iter(tag)

    def xml(self, indent: str) -> str:
        """The element as text, in lines."""
        start = f"{indent}<{self.tag}" + "".join(f' {name}="{_escaped(value)}"' for name, value in self.attrib.items())
        if not self.children:
            return f"{start}/>\n"
        return f"{start}>\n" + "".join(child.xml(indent + "  ") for child in self.children) + f"{indent}</{self.tag}>\n"


def _escaped(value: str) -> str:
    return value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def parse_interfaces(text: str) -> dict[str, Interface]:
    """The interfaces of an introspection document, by name. Raises ValueError if it is none."""
    document = _Element("", {})
    open_elements = [document]

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = _Element(tag, attributes)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda tag: open_elements.pop()
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        raise ValueError(f"not an introspection document: {error}") from error
    return {element.attrib["name"]: _interface(element) for element in document.iter("interface")}


def read_interfaces(path: str) -> dict[str, Interface]:
    """The interfaces of an introspection file. Raises OSError, ValueError."""
    with open(path, encoding="utf-8") as file:
        return parse_interfaces(file.read())


def introspection(interfaces: Iterable[Interface], children: Iterable[str]) -> str:
    """The introspection document of an object with these interfaces and the names of its child nodes."""
    nodes = "".join(f'  <node name="{name}"/>\n' for name in children)
    return DOCTYPE + "<node>\n" + "".join(interface.xml for interface in interfaces) + nodes + "</node>\n"


def _interface(element: _Element) -> Interface:
    methods = {
        method.attrib["name"]: Method(
            _signature(method, "in"), _signature(method, "out"), len([arg for arg in method.iter("arg") if _direction(arg) == "in"])
        )
        for method in element.iter("method")
    }
    signals = {
        signal.attrib["name"]: "".join(arg.attrib["type"] for arg in signal.iter("arg")) for signal in element.iter("signal")
    }
    properties = {item.attrib["name"]: Property(item.attrib["type"], _emits_changed(item)) for item in element.iter("property")}
    return Interface(element.attrib["name"], element.xml("  "), methods, properties, signals)


def _direction(arg: _Element) -> str:
    return arg.attrib.get("direction", "in")


def _signature(method: _Element, direction: str) -> str:
    return "".join(arg.attrib["type"] for arg in method.iter("arg") if _direction(arg) == direction)


def _emits_changed(item: _Element) -> str:
    for annotation in item.iter("annotation"):
        if annotation.attrib["name"] == _EMITS_CHANGED:
            return annotation.attrib["value"]
    return "true"
