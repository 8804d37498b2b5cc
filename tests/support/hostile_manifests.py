"""Manifests as strangers write them, with the verdict that every reader must come to."""

from __future__ import annotations

import json
import re
import zipfile
from io import BytesIO

DIM, MOST = 2**31 - 1, 1 << 40


def manifest(**changes) -> dict:
    """A manifest with every member, of a file with three outputs; a change of `...` takes a member out."""
    values = {
        "format_version": 2,
        "clipsight_version": "0.1.0",
        "kind": "onnx",
        "model": "net",
        "input": {
            "name": "clip",
            "layout": "NCTHW",
            "dtype": "float32",
            "channels": 3,
            "sizes": [[4, 10, 8], [4, 6, 8]],
        },
        "classes_input": {"num_classes": 5, "name": "classes", "shape": ["N", "M"], "dtype": "int64"},
        "option_inputs": [
            {"name": "explain", "dtype": "bool", "meaning": "maps", "default": True, "shape": ["N"]},
            {"name": "tau", "dtype": "float32", "meaning": "threshold", "default": -3.4e38, "shape": ["N"]},
        ],
        "outputs": [
            {"name": "logits", "shape": ["N", 5], "dtype": "float32", "meaning": "scores", "full_shape": None},
            {"name": "tube", "shape": ["N", "M", "t", "h", "w"], "dtype": "uint8", "meaning": "map"}
            | {"full_shape": ["N", "M", 4, "H", 8]},
            {"name": "share", "shape": ["N", "2 * M"], "dtype": "float32", "meaning": "share"},
        ],
        "methods": [{"method": "saliency_tube"}],
        "classes": "input",
        "num_classes": 5,
        "probability": "softmax",
        "target": {},
        "head": None,
        "features": "layer4",
        "feature_shape": [6, 2, 2, 2],
        "temporal_resolution": 2,
        "plugin": {"required": False, "library": "clipsight_onnxruntime", "minimum_version": ""},
        "preprocessing": {"frames": 4, "stride": 1, "resize": [12, 16], "crop": [10, 8], "channel_order": "RGB"}
        | {"mean": [0, 0.5, 1e-3], "std": [1, 1, 0.5], "scale": 0.004},
        "labels": list("abcde"),
        "weights_digest": "sha256:0",
        "built_with": {"torch": "2.13.0"},
        "self_check": None,
        "options": {},
        "session": {"session.disable_prepacking": "1"},
    }
    return {name: value for name, value in (values | changes).items() if value is not ...}


def _at(path: str, value) -> dict:
    """The manifest with another value at a path as "outputs[0].shape"; `...` takes the member out."""
    result = json.loads(json.dumps(manifest()))
    *steps, last = (int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", path))
    place = result
    for step in steps:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return result


_HEADS = {"heads": ["verb", "noun"], "head_classes": [2, 3]}
FRAMES = {"name": "frames", "layout": "NTHWC", "dtype": "uint8", "channels": 3, "sizes": [[4, 10, 8]]}
_BOX = {"name": "box", "shape": ["N", 6], "dtype": "int64", "meaning": "box"}

GOOD = {
    "as it is": manifest(),
    "frames": manifest(input=FRAMES),
    "members of a later release": manifest(later=[1, {"x": None}], methods=[{"later": 1}]),
    "the first format": manifest(format_version=1, option_inputs=..., session=..., options=..., self_check=...),
    "no name of the input": _at("input.name", ...),
    "nothing that may be left out": manifest(labels=None, preprocessing=None, classes_input=None, session={}),
    "eight axes": _at("outputs[0].shape", ["N", 1, 1, 1, 1, 1, 1, 5]),
    "the largest dimension": _at("outputs[0].shape", ["N", DIM]),
    "many elements": _at("outputs[0].shape", [1 << 20, 1 << 20]),
    "one number for the resize": _at("preprocessing.resize", 12),
    "no resize": _at("preprocessing.resize", None),
    "double precision": _at("input.dtype", "float64"),
    "a clip of frames first": _at("input.layout", "NTCHW"),
    "a clip of channels last": _at("input.layout", "NTHWC"),
    "a gray network": manifest(preprocessing=manifest()["preprocessing"] | {"mean": [0.5], "std": [0.25]}),
    "classes by number": manifest(classes=[0, 4]),
    "no probability": manifest(probability=..., target=...),
    "a sigmoid": manifest(probability="sigmoid"),
    "no logits of probabilities": manifest(probability="none"),
    "a contrast": manifest(target={"against": 4}, classes=[0, 1]),
    "the best other class": manifest(target={"against": "best_other", "stripped": "sigmoid"}),
    "a step": manifest(target={"steps": -1, "layout": "NTK"}),
    "the mean of steps": manifest(target={"steps": "mean", "layout": "NKT"}),
    "steps of one class": manifest(
        target={"steps": "max", "layout": "NT"}, num_classes=1, labels=["a"], classes_input=None
    ),
    "two heads": manifest(target=_HEADS, classes=[[0, 2], [1, 1]]),
    "two heads, predicted": manifest(target=_HEADS, classes="predicted"),
    "a target of a later release": manifest(target={"later": [1]}),
    "a version": _at("plugin.minimum_version", "0.1.0"),
    "a version before a release": _at("plugin.minimum_version", "1.10.0rc1.dev3+g12"),
}

BAD = {
    "an array": [],
    "a number": 3,
    "no members": {},
    "version 0": manifest(format_version=0),
    "a newer version": manifest(format_version=3),
    "a version far off": manifest(format_version=10**30),
    "a version with a fraction": manifest(format_version=2.0),
    "a version that is true": manifest(format_version=True),
    "a version as a text": manifest(format_version="2"),
    "an unknown kind": manifest(kind="tensorrt"),
    "a kind that is null": manifest(kind=None),
    "a model without a name": manifest(model=None),
    "no class": manifest(num_classes=0),
    "classes that are null": manifest(num_classes=None),
    "fewer classes than none": manifest(num_classes=-1),
    "too many classes": manifest(num_classes=2**31, labels=None),
    "half a class": manifest(num_classes=5.5),
    "labels of other classes": manifest(labels=["a"]),
    "labels by index": manifest(labels={"0": "a"}),
    "labels that are numbers": manifest(labels=[1, 2, 3, 4, 5]),
    "no labels of five": manifest(labels=[]),
    "another probability": manifest(probability="percent"),
    "a probability that is null": manifest(probability=None),
    "a probability by number": manifest(probability=1),
    "a target that is null": manifest(target=None),
    "a target that is a text": manifest(target="max"),
    "a contrast with no class": manifest(target={"against": 5}),
    "a contrast below all classes": manifest(target={"against": -1}),
    "a contrast with a word": manifest(target={"against": "second"}),
    "a contrast with true": manifest(target={"against": True}),
    "a median of steps": manifest(target={"steps": "median", "layout": "NTK"}),
    "half a step": manifest(target={"steps": 0.5, "layout": "NTK"}),
    "a step beyond all": manifest(target={"steps": 2**31, "layout": "NTK"}),
    "steps without a layout": manifest(target={"steps": 1}),
    "a layout without steps": manifest(target={"layout": "NTK"}),
    "another layout of steps": manifest(target={"steps": 1, "layout": "TNK"}),
    "five classes on no axis": manifest(target={"steps": 1, "layout": "NT"}),
    "a single head": manifest(target={"heads": ["verb"], "head_classes": [5]}),
    "heads of no classes": manifest(target={"heads": ["verb", "noun"]}),
    "classes of no heads": manifest(target={"head_classes": [2, 3]}),
    "classes of three heads": manifest(target=_HEADS | {"head_classes": [2, 2, 1]}),
    "heads of other classes": manifest(target=_HEADS | {"head_classes": [2, 2]}),
    "heads that wrap": manifest(target=_HEADS | {"head_classes": [2**31 - 1, 2**31 - 1]}),
    "classes of a head that is none": manifest(classes=[[0, 1]]),
    "one class of two heads": manifest(target=_HEADS, classes=[0, 1]),
    "three classes of two heads": manifest(target=_HEADS, classes=[[0, 1, 2]]),
    "a head with classes inside": manifest(target=_HEADS, classes=[[[0, 1], 2]]),
    "another end of the network": manifest(target={"stripped": "relu"}),
    "no sizes": _at("input.sizes", []),
    "sizes that are null": _at("input.sizes", None),
    "a size of two": _at("input.sizes", [[4, 10]]),
    "a size of four": _at("input.sizes", [[4, 10, 8, 1]]),
    "an empty size": _at("input.sizes", [[]]),
    "a size of zero": _at("input.sizes", [[4, 0, 8]]),
    "a negative size": _at("input.sizes", [[4, -10, 8]]),
    "a size beyond all": _at("input.sizes", [[4, 2**53, 8]]),
    "a clip of too many elements": _at("input.sizes", [[1 << 14, 1 << 14, 1 << 14]]),
    "no channels": _at("input.channels", 0),
    "channels that are true": _at("input.channels", True),
    "an unknown type": _at("input.dtype", "int32"),
    "another name of the input": _at("input.name", "video"),
    "frames that are a clip": _at("input.name", "frames"),
    "frames in the layout of a clip": manifest(input=FRAMES | {"layout": "NCTHW"}),
    "one mean for three deviations": _at("preprocessing.mean", [0.5]),
    "two of each": manifest(preprocessing=manifest()["preprocessing"] | {"mean": [0, 0], "std": [1, 1]}),
    "frames that are no bytes": manifest(input=FRAMES | {"dtype": "float32"}),
    "frames without preprocessing": manifest(input=FRAMES, preprocessing=None),
    "another layout": _at("input.layout", "NHWC"),
    "classes as bytes": _at("classes_input.dtype", "uint8"),
    "classes of another rank": _at("classes_input.shape", ["N"]),
    "classes under another name": _at("classes_input.name", "clip"),
    "classes of another number": _at("classes_input.num_classes", 6),
    "classes that are false": manifest(classes_input=False),
    "an option of no name": _at("option_inputs[1].name", "sigma"),
    "an option twice": _at("option_inputs[1]", manifest()["option_inputs"][0]),
    "an option of two axes": _at("option_inputs[1].shape", ["N", "N"]),
    "a flag as a number": _at("option_inputs[0].dtype", "float32"),
    "a flag with a number": _at("option_inputs[0].default", 1),
    "a number with a flag": _at("option_inputs[1].default", True),
    "an option without a value": _at("option_inputs[1].default", None),
    "options that are null": manifest(option_inputs=None),
    "no outputs": manifest(outputs=[]),
    "an output twice": manifest(outputs=[_BOX, _BOX]),
    "an output without a name": _at("outputs[0].name", ""),
    "an output without a shape": _at("outputs[0].shape", ...),
    "an output without axes": _at("outputs[0].shape", []),
    "nine axes": _at("outputs[0].shape", ["N"] * 9),
    "a shape that is a text": _at("outputs[0].shape", "N5"),
    "a dimension that is null": _at("outputs[0].shape", ["N", None]),
    "a dimension without a letter": _at("outputs[0].shape", ["", 5]),
    "a dimension of zero": _at("outputs[0].shape", ["N", 0]),
    "a dimension beyond all": _at("outputs[0].shape", ["N", 2**31]),
    "a dimension with a fraction": _at("outputs[0].shape", ["N", 5.0]),
    "too many elements": _at("outputs[0].shape", [1 << 20, 1 << 20, 2]),
    "a product that wraps": _at("outputs[0].shape", [1 << 30] * 8),
    "a full shape of another rank": _at("outputs[1].full_shape", ["N", 5]),
    "a full shape without axes": _at("outputs[1].full_shape", []),
    "an output of an unknown type": _at("outputs[0].dtype", "string"),
    "a library of another folder": _at("plugin.library", "/../../tmp/evil"),
    "a library that is null": _at("plugin.library", None),
    "a plug-in that is null": manifest(plugin=None),
    **{
        f"the version {text[:8]!a} of {len(text)}": _at("plugin.minimum_version", text)
        for text in ("\u00b2", "1" * 5000, "99rc1.0.0", "x.9.9", "1.2", "1.2.3\n", "1.2.3" + "a" * 99)
    },
    "a plug-in that may be": _at("plugin.required", 1),
    "an entry of a session that writes": manifest(session={"session.collect_node_memory_stats_to_file": "x"}),
    "another value of an entry": manifest(session={"session.disable_prepacking": "0"}),
    "a session that is null": manifest(session=None),
    "preprocessing that is false": manifest(preprocessing=False),
    "preprocessing without a crop": _at("preprocessing.crop", ...),
    "no frames": _at("preprocessing.frames", 0),
    "a stride of zero": _at("preprocessing.stride", 0),
    "a crop of one length": _at("preprocessing.crop", [10]),
    "a crop of three": _at("preprocessing.crop", [10, 8, 8]),
    "a negative crop": _at("preprocessing.crop", [10, -8]),
    "a resize to nothing": _at("preprocessing.resize", 0),
    "a resize that is false": _at("preprocessing.resize", False),
    "a resize of three": _at("preprocessing.resize", [1, 2, 3]),
    "a resize beyond all": _at("preprocessing.resize", [2**40, 2**40]),
    "a mean of two": _at("preprocessing.mean", [0, 0]),
    "a mean that is a text": _at("preprocessing.mean", ["0", 0, 0]),
    "a deviation of zero": _at("preprocessing.std", [1, 0, 1]),
    "a deviation of minus zero": _at("preprocessing.std", [1, -0.0, 1]),
    "another order of channels": _at("preprocessing.channel_order", "RGBA"),
    "a scale that is null": _at("preprocessing.scale", None),
    "feature_shape with a text": manifest(feature_shape=["x"]),
    "methods that are texts": manifest(methods=["tube"]),
    **{
        f"without {name}": manifest(**{name: ...}) for name in ("kind", "outputs", "plugin", "labels", "weights_digest")
    },
}


def _texts() -> dict[str, tuple[bytes, bool]]:
    """What only a text can be, and a value cannot."""
    good = json.dumps(manifest())

    def with_(old: str, new: str | bytes) -> bytes:
        assert good.count(old) == 1, old
        return good.encode().replace(old.encode(), new if isinstance(new, bytes) else new.encode())

    def model(text: str | bytes) -> bytes:
        return with_('"model": "net"', b'"model": ' + (text if isinstance(text, bytes) else text.encode()))

    def number(text: str) -> bytes:
        return with_('"scale": 0.004', f'"scale": {text}')

    def deep(levels: int) -> bytes:
        return with_('"options": {}', f'"options": {{"x": {"[" * (levels - 2)}{"]" * (levels - 2)}}}')

    good_texts = {
        "spaces": b" \t\r\n" + with_('"model":', '"model" \n : ') + b"\n",
        "UTF-8": model('"é 中 🎥"'),
        "escapes": model(r'"\"\\\/\b\f\n\r\t\u00e9\ud83c\udfa5"'),
        "a delete character": model('"\x7f"'),
        "the last code point": model('"\U0010ffff"'),
        "an exponent": number("4E-3"),
        "a negative zero": number("-0"),
        "a number too small for a double": number("1e-400"),
        "64 levels": deep(64),
        "members twice in different objects": with_('"options": {}', '"options": {"kind": 1, "x": {"kind": 2}}'),
    }
    bad_texts = {
        "no text": b"",
        "only spaces": b"  ",
        "half of a text": good[: len(good) // 2].encode(),
        "a second value": good.encode() + b"{}",
        "a byte order mark": b"\xef\xbb\xbf" + good.encode(),
        "UTF-16": good.encode("utf-16"),
        "a member twice": with_('"model": "net"', '"model": "net", "model": "other"'),
        "a member twice, once escaped": with_('"model": "net"', r'"model": "net", "m\u006fdel": "net"'),
        "a member twice, deep down": with_('"options": {}', '"options": {"a": {"b": 1, "b": 1}}'),
        "leading zeros": with_('"format_version": 2', '"format_version": 0002'),
        "a plus sign": number("+5"),
        "no digit before the point": number(".5"),
        "no digit after the point": number("5."),
        "an exponent without digits": number("5e"),
        "hexadecimal": number("0x5"),
        "two signs": number("--5"),
        "a sign alone": number("-"),
        "NaN": number("NaN"),
        "infinity": number("Infinity"),
        "minus infinity": number("-Infinity"),
        "a number too large for a double": number("1e400"),
        "a whole number too large for a double": number("1" * 400),
        "a number of 5000 digits": number("1" * 5000),
        "too large in a member of a later release": with_('"options": {}', '"options": {"x": 1e999}'),
        "a word": number("nil"),
        "another case": number("True"),
        "a comma at the end": with_('"options": {}', '"options": {"a": 1,}'),
        "a comment": good.encode() + b"// more",
        "single quotes": model("'net'"),
        "a raw line feed": model('"a\nb"'),
        "a raw NUL": model(b'"a\0b"'),
        "an escaped NUL": model(r'"a\u0000b"'),
        "an escaped NUL in a name": with_('"options": {}', r'"options": {"\u0000": 1}'),
        "half of a surrogate pair": model(r'"\ud83c"'),
        "the other half": model(r'"\udfa5"'),
        "halves in the wrong order": model(r'"\udfa5\ud83c"'),
        "a surrogate in UTF-8": model(b'"\xed\xa0\x80"'),
        "an unknown escape": model(r'"\x41"'),
        "an escape of three digits": model(r'"\u00e"'),
        "a text without an end": good.encode()[:-2] + b'"x',
        "Latin-1": model(b'"caf\xe9"'),
        "a longer form of UTF-8": model(b'"\xc0\xaf"'),
        "a code point beyond the last": model(b'"\xf4\x90\x80\x80"'),
        "65 levels": deep(65),
        "100000 levels": b"[" * 100000,
        "more than 4 MiB": good.encode() + b" " * (4 << 20),
        "a null byte at the end": good.encode() + b"\0",
    }
    return {n: (t, True) for n, t in good_texts.items()} | {n: (t, False) for n, t in bad_texts.items()}


def cases() -> dict[str, tuple[bytes, bool]]:
    """By name: the text of a manifest, and whether a reader takes it."""
    values = {name: (json.dumps(value).encode(), name in GOOD) for name, value in (GOOD | BAD).items()}
    texts = _texts()
    assert not values.keys() & texts.keys()
    return values | texts


def _varint(value: int) -> bytes:
    result = b""
    while value > 127:
        result += bytes([value & 127 | 128])
        value >>= 7
    return result + bytes([value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def metadata(text: bytes, key: bytes = b"clipsight") -> bytes:
    """ModelProto.metadata_props with one entry: an ONNX file that has nothing else."""
    return _field(14, _field(1, key) + _field(2, text))


def archive(*texts: bytes, compression: int = zipfile.ZIP_STORED, name: str = "x/extra/clipsight.json") -> bytes:
    """A zip archive with these manifests, as a TorchScript file has one."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w", compression) as zip:
        for i, text in enumerate(texts):
            zip.writestr(f"{i}{name}" if i else name, text)
    return file.getvalue()


def shells() -> dict[str, tuple[bytes, bool]]:
    """By name: a file around a good manifest, and whether a reader finds one manifest in it."""
    text = json.dumps(manifest()).encode()
    entry = metadata(text)
    return {
        "an entry": (entry, True),
        "an archive": (archive(text), True),
        "other entries beside it": (metadata(b"\xff", b"\xff") + entry + metadata(b"", b""), True),
        "numbers beside it": (b"\x08\x0a" + entry + b"\x28" + b"\xff" * 9 + b"\x01", True),
        "an archive with a prefix": (archive(text, name="a/b/extra/clipsight.json"), True),
        "two entries": (entry * 2, False),
        "two archived": (archive(text, text), False),
        "two values in an entry": (_field(14, _field(1, b"clipsight") + _field(2, text) * 2), False),
        "no manifest": (metadata(text, b"other"), False),
        "none archived": (archive(text, name="x/clipsight.json"), False),
        "packed": (archive(text, compression=zipfile.ZIP_DEFLATED), False),
        "packed, and large": (archive(b" " * (64 << 20), compression=zipfile.ZIP_DEFLATED), False),
        "a number of 65 bits": (b"\x08" + b"\xff" * 9 + b"\x02" + entry, False),
        "a number that never ends": (b"\x08" + b"\xff" * 20, False),
        "a number that is cut off": (entry + b"\x08\xff", False),
        "a field past the end": (entry + b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", False),
        "field 0": (b"\x00\x01" + entry, False),
        "a group": (entry + b"\x0b", False),
        "empty": (b"", False),
        "too many fields": (b"\x08\x01" * 100_001 + entry, False),
    }
