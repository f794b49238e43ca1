# SPDX-License-Identifier: Apache-2.0
"""The interfaces as `dbus/org.triaged.Triage1.xml` has them: every signature is taken from there, and introspection serves it."""
from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

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


def parse_interfaces(text: str) -> dict[str, Interface]:
    """The interfaces of an introspection document, by name. Raises ValueError if it is none."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"not an introspection document: {error}") from error
    return {element.attrib["name"]: _interface(element) for element in root.iter("interface")}


def read_interfaces(path: str) -> dict[str, Interface]:
    """The interfaces of an introspection file. Raises OSError, ValueError."""
    with open(path, encoding="utf-8") as file:
        return parse_interfaces(file.read())


def introspection(interfaces: Iterable[Interface], children: Iterable[str]) -> str:
    """The introspection document of an object with these interfaces and the names of its child nodes."""
    nodes = "".join(f'  <node name="{name}"/>\n' for name in children)
    return DOCTYPE + "<node>\n" + "".join(interface.xml for interface in interfaces) + nodes + "</node>\n"


def _interface(element: ElementTree.Element) -> Interface:
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
    ElementTree.indent(element, level=1)
    xml = "  " + ElementTree.tostring(element, encoding="unicode").strip() + "\n"
    return Interface(element.attrib["name"], xml, methods, properties, signals)


def _direction(arg: ElementTree.Element) -> str:
    return arg.attrib.get("direction", "in")


def _signature(method: ElementTree.Element, direction: str) -> str:
    return "".join(arg.attrib["type"] for arg in method.iter("arg") if _direction(arg) == direction)


def _emits_changed(item: ElementTree.Element) -> str:
    for annotation in item.iter("annotation"):
        if annotation.attrib["name"] == _EMITS_CHANGED:
            return annotation.attrib["value"]
    return "true"
