"""Rows about JSON, numbers, texts, names and headers."""

import json
from typing import Final

from tests.hostile.rows import DIFFUSION, Row, asked, got, headed, said
from tests.serve_app.api.parsing.test_hostile import BODIES, FIELDS

MODEL: Final = (404, "model_not_found", "model_name")
TYPE: Final = (422, "wrong_type")
WEIGHT: Final = (422, "invalid_parameter", "prompt")

JSONS: Final = (
    *(said(f"JSON: {name}", body, status, code) for name, (body, status, code) in BODIES.items()),
    said("something after the end", b'{"prompt": "SECRET"} SECRET', 400, "invalid_json"),
    said("two documents", b'{"prompt": "SECRET"}{"prompt": "SECRET"}', 400, "invalid_json"),
    said("a comment", b'{"prompt": "SECRET" /* SECRET */}', 400, "invalid_json"),
    said("a comma too many", b'{"prompt": "SECRET",}', 400, "invalid_json"),
    said("other quotes", b"{'prompt': 'SECRET'}", 400, "invalid_json"),
    said("a control character in a string", b'{"prompt": "SECRET\x01"}', 400, "invalid_json"),
    said("a number with a leading zero", b'{"prompt": "SECRET", "seed": 007}', 400, "invalid_json"),
    said("a number of 900,000 digits", b'{"prompt": "SECRET", "seed": ' + b"9" * 900_000 + b"}", 422, "too_large"),
    said("a fraction of 900,000 digits", b'{"prompt": "SECRET", "guidance_scale": 0.' + b"9" * 900_000 + b"}", 200),
    said("an exponent", b'{"prompt": "SECRET", "guidance_scale": 1e-999999999}', 200),
    said("a surrogate deep inside", rb'{"prompt": "SECRET", "controls": [{"type": "\ud800"}]}', 422, None),
    said("70,000 unknown fields", json.dumps({f"f{i}": 0 for i in range(70_000)}).encode(), 422, "too_many_fields"),
    said("256 unknown fields", json.dumps({f"num_image{i}": 0 for i in range(256)}).encode(), 422, "required"),
    said("a list of 400,000", b'{"prompt": "SECRET", "controls": [' + b"1," * 400_000 + b"1]}", 422, "too_long"),
    said("__proto__", b'{"prompt": "SECRET", "__proto__": {"a": 1}}', 422, "unknown_field", "__proto__"),
    said("__class__", b'{"prompt": "SECRET", "__class__": "SECRET"}', 422, "unknown_field", "__class__"),
)

NUMBERS: Final = (
    *(asked(f"fields: {str(fields)[:60]}", fields, status, code, param) for fields, status, code, param in FIELDS),
    asked("a seed beyond all", {"seed": 2**63}, 422, "too_large", "seed"),
    asked("a seed of nothing", {"seed": ""}, *TYPE, "seed"),
    asked("one and a half images", {"num_images": 1.5}, *TYPE, "num_images"),
    asked("minus zero", {"width": -0.0}, 422, "too_small", "width"),
    asked("steps of truth", {"num_inference_steps": True}, *TYPE, "num_inference_steps"),
    asked("too many layers left out", {"clip_skip": 13}, 422, "too_large", "clip_skip"),
    asked(
        "everything at its most",
        {"num_images": 16, "num_inference_steps": 150, "width": 2048, "height": 2048},
        422,
        "invalid_parameter",
        "width",
    ),
    asked("the highest priority of all", {"priority": "highest"}, 422, "not_allowed", "priority"),
    asked("HIGH", {"priority": "HIGH"}, 422, "not_allowed", "priority"),
    asked("priority 10", {"priority": 10}, 422, "not_allowed", "priority"),
    asked("priority -1", {"priority": -1}, 422, "not_allowed", "priority"),
    asked("no priority", {"priority": None}),
    asked("a list of priorities", {"priority": ["high"]}, 422, "not_allowed", "priority"),
    asked("a deadline that has passed", {"deadline_ms": 0}, 422, "too_small", "deadline_ms"),
    asked("a deadline before the question", {"deadline_ms": -1}, 422, "too_small", "deadline_ms"),
    asked("a deadline in years", {"deadline_ms": 10**12}, 422, "too_large", "deadline_ms"),
    asked("a strength without a picture", {"strength": 0.5}, 422, "invalid_parameter", "strength"),
)

TEXTS: Final = (
    asked("a prompt of 900,000 letters", {"prompt": "SECRET" * 150_000}, 422, "too_long", "prompt"),
    said("a prompt of two megabytes", json.dumps({"prompt": "SECRET" * 350_000}).encode(), 413, "body_too_large"),
    asked("8,000 emoji", {"prompt": "☕" * 8_000}),
    asked("marks upon marks", {"prompt": "SECRET" + "\u0301\u0489" * 3_900}),
    asked("writing that turns around", {"prompt": "\u202eTERCES\u2066\u2069\u200f\u061c"}),
    *(
        asked(f"the control character {character!r}", {name: f"SECRET{character}"}, 422, "invalid_value", name)
        for name in ("prompt", "negative_prompt", "style_preset")
        for character in "\0\x07\x08\x0b\x0c\x1b\x7f\x85\x9f"
    ),
    asked("lines and tabs", {"prompt": "SECRET\r\n\tcup\u2028"}),
    asked("nothing but what cannot be seen", {"prompt": "\u2003\u3000 \n"}),
    asked("nothing", {"prompt": ""}),
    asked("7,999 brackets that open", {"prompt": "(" * 7_990 + "SECRET"}, *WEIGHT),
    asked("7,999 brackets that close", {"prompt": "SECRET" + ")" * 7_990}),
    asked("4,000 pairs of brackets", {"prompt": "(" * 3_990 + "SECRET" + ")" * 3_990}, *WEIGHT),
    asked("4,000 pairs of square ones", {"prompt": "[" * 3_990 + "SECRET" + "]" * 3_990}),
    asked("brackets across each other", {"prompt": "([" * 1_990 + "SECRET" + ")]" * 1_990}),
    asked("a weight beyond all", {"prompt": "(SECRET:99999999999)"}, *WEIGHT),
    asked("a weight of a thousand digits", {"prompt": "(SECRET:" + "9" * 1_000 + ")"}, *WEIGHT),
    asked("weights upon weights", {"prompt": "(" * 30 + "SECRET" + ":9)" * 30}, *WEIGHT),
    asked("a weight below nothing", {"prompt": "(SECRET:-1)"}, *WEIGHT),
    asked("a weight that is no number", {"prompt": "(SECRET:nan) (SECRET:1e30) (SECRET:inf)"}),
    asked("7,999 backslashes", {"prompt": "\\" * 7_990 + "SECRET"}),
    asked("BREAK upon BREAK", {"prompt": "BREAK " * 1_300}),
    asked("a model's own words", {"prompt": "<|endoftext|>" * 600}),
    asked("a script", {"prompt": "<script>alert('SECRET')</script>"}),
    asked(
        "a template", {"prompt": "{{7*7}} ${jndi:ldap://SECRET} %s%n {0.__class__}", "style_preset": "{0.__class__}"}
    ),
    asked("a file to include", {"prompt": "<lora:../../SECRET:1> embedding:/etc/passwd"}),
    asked("a style of two thousand letters", {"style_preset": "SECRET" * 400}, 422, "too_long", "style_preset"),
)

NAMES: Final = (
    *(
        asked(f"the model {name[:40]!r}", {"model_name": name}, *MODEL)
        for name in (
            "../../../../etc/passwd/SECRET",
            "/etc/passwd",
            "file:///etc/passwd",
            "http://169.254.169.254/latest/SECRET",
            "https://SECRET.example/model.safetensors",
            "C:\\SECRET\\model",
            "tiny/../tiny",
            "tiny ",
            " tiny",
            "",
            ".",
            "SECRET\u202e",
        )
    ),
    *(
        asked(f"the model {name!r}", {"model_name": name}, 422, "invalid_value", "model_name")
        for name in ("tiny\0SECRET", "\n", "tiny\x85")
    ),
    *(
        asked(f"the LoRA {name!r}", {"loras": [{"name": name}]}, 422, "invalid_value", "loras/0/name")
        for name in ("../../SECRET", "/etc/passwd", "file:///SECRET", "C:\\SECRET", "", ".", "<SECRET>", "a:1", "x\0y")
    ),
    asked("a LoRA that nobody has", {"loras": [{"name": "SECRET"}]}, 422, "invalid_parameter", "loras"),
    asked("a thousand LoRAs", {"loras": [{"name": "SECRET"}] * 1000}, 422, "too_long", "loras"),
    asked(
        "a LoRA from an address",
        {"loras": [{"path": "http://169.254.169.254/SECRET"}]},
        422,
        "required",
        "loras/0/name",
    ),
    asked("a model in a list", {"model_name": ["tiny"]}, *TYPE, "model_name"),
    *(
        asked(f"the sampler {name!r}", {"sampler": name}, 422, "invalid_value", "sampler")
        for name in ("../../SECRET", "os.system", "diffusers.SECRET", "", "DDIMScheduler.__init__", "euler\0")
    ),
    *(
        asked(f"the field {name}", {name: "http://169.254.169.254/SECRET"}, 422, "unknown_field", name)
        for name in ("image_url", "init_image", "model_path", "revision", "variant", "callback", "webhook", "lora")
    ),
    *(
        asked(f"the unknown field {name[:20]!r}", {name: "SECRET"}, 422, "unknown_field")
        for name in ("", "SECRET\n", "a/b~1", "<script>", "prompt\0", "x" * 10_000, "\u202e")
    ),
    got("previews that nobody can count", f"{DIFFUSION}/text-to-image?previews=SECRET", 405, "method_not_allowed"),
)

HEADERS: Final = (
    headed("Ray's orders", (("X-Request-Timeout-Seconds", "0"), ("X-Request-Disconnect-Disabled", "?1"))),
    headed("Ray's orders, otherwise spelt", (("x_request_timeout_seconds", "0"), ("X_Session-ID", "SECRET"))),
    headed("another's model", (("serve_multiplexed_model_id", "SECRET"), ("Serve-Multiplexed-Model-Id", "SECRET"))),
    headed("a strange id", (("X-Request-ID", "SECRET SECRET"),)),
    headed("a long id", (("X-Request-ID", "SECRET" * 500),)),
    headed("two ids", (("X-Request-ID", "SECRET!"), ("X-Request-ID", "SECRET?"))),
    headed("an id that is no text", (("X-Request-ID", b"\xff\xfe"),)),
    headed("a trace that is none", (("traceparent", "SECRET"),)),
    headed("a trace of no text", (("traceparent", b"\xff\xfe"), ("tracestate", b"SECRET=\xff"))),
    headed("a trace of tomorrow", (("traceparent", b"01-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01-\xff"),)),
    headed("a trace with a strange state", (("traceparent", f"00-{'a' * 32}-{'b' * 16}-01"), ("tracestate", b"\xff"))),
    headed("two traces", (("traceparent", f"00-{'a' * 32}-{'b' * 16}-01"),) * 2),
    headed("a trace of zeros", (("traceparent", f"00-{'0' * 32}-{'0' * 16}-01"),)),
    headed("a baggage", (("baggage", "SECRET=" + "a" * 9_000),)),
    headed("somebody else's address", (("X-Forwarded-For", "SECRET, 127.0.0.1"), ("Forwarded", "for=SECRET"))),
    headed("another host", (("X-Forwarded-Host", "SECRET.example"), ("X-Original-URL", "/SECRET"))),
    headed("another method", (("X-HTTP-Method-Override", "DELETE"),)),
    headed("a range of thousands", (("Range", "bytes=" + "0-0," * 7_000 + "1-2"),)),
    headed("a cookie of 30 kB", (("Cookie", "SECRET=" + "a" * 30_000),)),
    headed("nearly as many headers as there may be", tuple((f"X-{i}", "SECRET") for i in range(90))),
    headed("an upgrade", (("Upgrade", "h2c"), ("HTTP2-Settings", "SECRET"))),
    headed("an Accept of ten thousand", (("Accept", "a/b;q=0.1," * 3_000 + "application/json"),)),
    headed("an Accept of nonsense", (("Accept", "SECRET, /, ;;;, a/;q=NaN, */*;q=1e999, =;="),)),
    headed("an Accept of no text", (("Accept", b"\xff\xff/\xff"),), 406, "not_acceptable"),
    headed("nothing is acceptable", (("Accept", "text/SECRET"),), 406, "not_acceptable"),
    headed("a quality beyond one", (("Accept", "image/png;q=7, text/html"),), 406, "not_acceptable"),
)

ROWS: Final[tuple[Row, ...]] = (*JSONS, *NUMBERS, *TEXTS, *NAMES, *HEADERS)
