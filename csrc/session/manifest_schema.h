// From manifest.schema.json.
constexpr char kManifestSchema[] = R"json({
  "$schema": "http://json-schema.org/draft-04/schema#",
  "title": "The manifest of a file that clipsight.export wrote",
  "description": "Types and ranges. Python and C++ read this schema; members that it does not name are allowed, except in session. Rules between members stand in manifest.py and csrc/session/manifest.cpp.",
  "type": "object",
  "required": [
    "format_version", "kind", "model", "input", "classes_input", "outputs", "methods", "classes", "num_classes", "head",
    "features", "feature_shape", "temporal_resolution", "plugin", "preprocessing", "labels", "weights_digest",
    "built_with", "clipsight_version"
  ],
  "properties": {
    "format_version": {"type": "integer", "minimum": 1, "maximum": 2},
    "clipsight_version": {"type": "string"},
    "kind": {"type": "string", "enum": ["torchscript", "onnx", "aot"]},
    "model": {"type": "string"},
    "input": {
      "type": "object",
      "required": ["sizes", "dtype"],
      "properties": {
        "name": {"type": "string", "enum": ["clip", "frames"]},
        "layout": {"type": "string", "enum": ["NCTHW", "NTCHW", "NTHWC"]},
        "dtype": {"$ref": "#/definitions/dtype"},
        "channels": {"$ref": "#/definitions/length"},
        "batch": {"type": "string"},
        "sizes": {
          "type": "array",
          "minItems": 1,
          "maxItems": 1024,
          "items": {"type": "array", "minItems": 3, "maxItems": 3, "items": {"$ref": "#/definitions/length"}}
        }
      }
    },
    "classes_input": {
      "type": ["object", "null"],
      "required": ["num_classes"],
      "properties": {
        "num_classes": {"$ref": "#/definitions/length"},
        "name": {"type": "string", "enum": ["classes"]},
        "shape": {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "string", "enum": ["N", "M"]}},
        "dtype": {"type": "string", "enum": ["int64"]}
      }
    },
    "option_inputs": {
      "type": "array",
      "maxItems": 3,
      "items": {
        "type": "object",
        "required": ["name", "dtype", "meaning", "default"],
        "properties": {
          "name": {"type": "string", "enum": ["explain", "tau", "n_sigma"]},
          "dtype": {"type": "string", "enum": ["bool", "float32"]},
          "meaning": {"type": "string"},
          "default": {"type": ["boolean", "number"]},
          "shape": {"type": "array", "minItems": 1, "maxItems": 1, "items": {"type": "string", "enum": ["N"]}}
        }
      }
    },
    "outputs": {
      "type": "array",
      "minItems": 1,
      "maxItems": 65536,
      "items": {
        "type": "object",
        "required": ["name", "shape", "dtype", "meaning"],
        "properties": {
          "name": {"type": "string", "minLength": 1},
          "shape": {"$ref": "#/definitions/shape"},
          "full_shape": {
            "type": ["array", "null"],
            "minItems": 1,
            "maxItems": 8,
            "items": {"$ref": "#/definitions/dim"}
          },
          "dtype": {"$ref": "#/definitions/dtype"},
          "meaning": {"type": "string"}
        }
      }
    },
    "methods": {"type": "array", "items": {"type": "object"}},
    "classes": {"type": ["string", "array"], "items": {"$ref": "#/definitions/choice"}},
    "num_classes": {"$ref": "#/definitions/length"},
    "probability": {"type": "string", "enum": ["softmax", "sigmoid", "none"]},
    "target": {
      "type": "object",
      "properties": {
        "against": {"type": ["integer", "string"], "minimum": 0, "maximum": 2147483647},
        "steps": {"type": ["integer", "string"], "minimum": -2147483647, "maximum": 2147483647},
        "layout": {"type": "string", "enum": ["NKT", "NTK", "NT"]},
        "heads": {"type": "array", "minItems": 2, "maxItems": 1024, "items": {"type": "string"}},
        "head_classes": {"type": "array", "minItems": 2, "maxItems": 1024, "items": {"$ref": "#/definitions/length"}},
        "stripped": {"type": "string", "enum": ["softmax", "sigmoid"]}
      }
    },
    "head": {"type": ["string", "null"]},
    "features": {"type": ["string", "null"]},
    "feature_shape": {"type": "array", "maxItems": 8, "items": {"$ref": "#/definitions/count"}},
    "explains": {
      "type": "array",
      "maxItems": 64,
      "items": {
        "type": "object",
        "required": ["layer", "op", "channels", "grid"],
        "properties": {
          "layer": {"type": "string"},
          "op": {"type": "string"},
          "channels": {"$ref": "#/definitions/count"},
          "grid": {"type": "array", "minItems": 3, "maxItems": 3, "items": {"$ref": "#/definitions/count"}}
        }
      }
    },
    "temporal_resolution": {"$ref": "#/definitions/count"},
    "plugin": {
      "type": "object",
      "required": ["required"],
      "properties": {
        "required": {"type": "boolean"},
        "library": {"type": "string", "enum": ["clipsight_torch", "clipsight_onnxruntime"]},
        "minimum_version": {"type": "string"}
      }
    },
    "preprocessing": {
      "type": ["object", "null"],
      "required": ["frames", "stride", "resize", "crop", "mean", "std", "channel_order", "scale"],
      "properties": {
        "frames": {"$ref": "#/definitions/length"},
        "stride": {"$ref": "#/definitions/length"},
        "resize": {
          "type": ["null", "integer", "array"],
          "minimum": 1,
          "maximum": 2147483647,
          "minItems": 2,
          "maxItems": 2,
          "items": {"$ref": "#/definitions/length"}
        },
        "crop": {"type": "array", "minItems": 2, "maxItems": 2, "items": {"$ref": "#/definitions/length"}},
        "mean": {"type": "array", "minItems": 1, "maxItems": 3, "items": {"type": "number"}},
        "std": {"type": "array", "minItems": 1, "maxItems": 3, "items": {"type": "number"}},
        "channel_order": {"type": "string", "enum": ["RGB", "BGR"]},
        "scale": {"type": "number"}
      }
    },
    "labels": {"type": ["array", "null"], "items": {"type": "string"}},
    "weights_digest": {"type": "string"},
    "built_with": {"type": "object"},
    "self_check": {"type": ["object", "null"]},
    "options": {"type": "object"},
    "session": {
      "description": "Entries of an ONNX Runtime session. Others would make it write or load any file.",
      "type": "object",
      "properties": {"session.disable_prepacking": {"type": "string", "enum": ["1"]}},
      "additionalProperties": false
    }
  },
  "definitions": {
    "length": {"type": "integer", "minimum": 1, "maximum": 2147483647},
    "count": {"type": "integer", "minimum": 0, "maximum": 2147483647},
    "choice": {
      "type": ["integer", "array"],
      "minimum": 0,
      "maximum": 2147483647,
      "minItems": 2,
      "maxItems": 1024,
      "items": {"$ref": "#/definitions/count"}
    },
    "dtype": {
      "type": "string",
      "enum": ["float32", "float16", "bfloat16", "uint8", "int64", "bool", "float64"]
    },
    "dim": {"type": ["integer", "string"], "minimum": 1, "maximum": 2147483647, "minLength": 1},
    "shape": {"type": "array", "minItems": 1, "maxItems": 8, "items": {"$ref": "#/definitions/dim"}}
  }
}
)json";
