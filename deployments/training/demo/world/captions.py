"""Captions: a scene in words, and which of its attributes those words promise.

What a caption does not say is left to chance in the scene, except the look (none said means flat) and, mostly, size and
place: an ad that does not say where its product stands has it in the middle.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from deployments.training.demo.world import words
from deployments.training.demo.world.world import SIZES, STYLES, Scene, random_scene

ATTRIBUTES: Final = ("product", "colour", "background", "size", "position", "style")
EMPTY_SHARE: Final = 0.1
_SAID: Final = {"product": 0.96, "colour": 0.85, "background": 0.85, "size": 0.35, "position": 0.45, "style": 0.55}


@dataclass(frozen=True)
class Caption:
    """`text`, and the attributes of the scene that it `promises`."""

    text: str
    promises: frozenset[str] = field(default_factory=frozenset)


def is_held_out(scene: Scene) -> bool:
    """One in ten combinations of product and colours is never trained on."""
    return zlib.crc32(f"{scene.product}/{scene.colour}/{scene.background}".encode()) % 10 == 0


def sample(rng: random.Random, held_out: bool = False) -> tuple[Scene, Caption]:
    """A scene of the training part, or of the held-out part, of the world, with a caption for it."""
    while True:
        scene, caption = _sample(rng)
        if is_held_out(scene) == held_out:
            return scene, caption


def _sample(rng: random.Random) -> tuple[Scene, Caption]:
    scene = random_scene(rng)
    if rng.random() < EMPTY_SHARE:
        return scene, Caption("" if rng.random() < 0.6 else _nothing(rng))
    promises = {name for name in ATTRIBUTES if rng.random() < _SAID[name]}
    scene = _with_defaults(rng, scene, promises)
    if scene.style == "flat":
        promises.discard("style")
    text = describe(rng, scene, promises)
    return scene, Caption(text, frozenset(promises | {"style"}))


def _with_defaults(rng: random.Random, scene: Scene, promises: set[str]) -> Scene:
    if "style" not in promises:
        scene = replace(scene, style="flat")
    elif scene.style == "flat":
        scene = replace(scene, style=rng.choice(STYLES[1:]))
    if "size" not in promises:
        scene = replace(scene, size=rng.choices(list(SIZES), (1, 6, 3))[0])
    if "position" not in promises and rng.random() < 0.85:
        scene = replace(scene, position="centre")
    return scene


def describe(rng: random.Random, scene: Scene, promises: set[str]) -> str:
    """Words for the attributes of `scene` in `promises`, and for no others; a promised style is not "flat"."""
    form = rng.choices((_plain, _tags, _advertisement), (5, 2, 3 if "product" in promises else 0))[0]
    text = _with_style(rng, scene, promises, form)
    if rng.random() < 0.2:
        text = f"{text}, {', '.join(rng.sample(words.FILLERS, rng.randint(1, 2)))}"
    if rng.random() < 0.06:
        text = f"{text}, {_gibberish(rng)}" if rng.random() < 0.5 else f"{_gibberish(rng)}, {text}"
    return text.capitalize() if rng.random() < 0.15 else text


Form = Callable[[random.Random, "Phrases", str], str]


def _with_style(rng: random.Random, scene: Scene, promises: set[str], form: Form) -> str:
    phrases = Phrases(rng, scene, promises)
    if "style" not in promises:
        return form(rng, phrases, "")
    if rng.random() < 0.45:
        return form(rng, phrases, rng.choice(words.STYLE_WORDS[scene.style]))
    # The preset that a caller picks outranks the odd style word in the prompt it is appended to.
    other = rng.choice(words.STYLE_WORDS[rng.choice(STYLES[1:])]) if rng.random() < 0.2 else ""
    bare = rng.choice(words.STYLE_WORDS[scene.style])
    tail = words.STYLE_TAILS[scene.style] if rng.random() < 0.7 else rng.choice((f"{bare} style", f"{bare} look", bare))
    return f"{form(rng, phrases, other)}, {tail}"


class Phrases:
    """One way to say each attribute of a scene; "" where it is not to be said."""

    def __init__(self, rng: random.Random, scene: Scene, promises: set[str]) -> None:
        vague = rng.choice(words.VAGUE) if rng.random() < 0.7 else _gibberish(rng)
        self.noun = rng.choice(words.NOUNS[scene.product]) if "product" in promises else vague
        self.trade = rng.choice(words.TRADES[scene.product]) if "product" in promises else ""
        self.colour = rng.choice(words.COLOUR_WORDS[scene.colour]) if "colour" in promises else ""
        self.size = rng.choice(words.SIZE_WORDS[scene.size]) if "size" in promises else ""
        self.position = rng.choice(words.POSITION_WORDS[scene.position]) if "position" in promises else ""
        self.background = rng.choice(words.COLOUR_WORDS[scene.background]) if "background" in promises else ""


def _plain(rng: random.Random, say: Phrases, style: str) -> str:
    thing = _with_article(rng, _join(style, say.size, say.colour, say.noun))
    ground = _ground(rng, say.background)
    order = rng.random()
    if ground and order < 0.15:
        return f"{ground}, {_join(thing, say.position)}"
    if order < 0.3:
        return _join(thing, ground, say.position)
    return _join(thing, say.position, ground)


def _tags(rng: random.Random, say: Phrases, style: str) -> str:
    ground = f"{say.background} background" if say.background else ""
    tags = [tag for tag in (style, _join(say.size, say.colour, say.noun), say.position, ground) if tag]
    rng.shuffle(tags)
    return ", ".join(tags)


def _advertisement(rng: random.Random, say: Phrases, style: str) -> str:
    piece = _with_article(rng, _join(style, rng.choice(words.PIECES)))
    adjective = rng.choice(words.ADJECTIVES) if rng.random() < 0.6 else ""
    company = rng.choice(words.COMPANIES) if rng.random() < 0.7 else ""
    trade = _with_article(rng, _join(adjective, say.trade, company))
    text = f"{piece} {rng.choice(('for', 'for', 'of'))} {trade}"
    detail = _join(say.size, say.colour, say.noun) if say.size or say.colour else ""
    details = [_join(detail, say.position), _ground(rng, say.background)]
    joined = rng.choice((", ", ", ", ", with ")).join([text, *[d for d in details if d]])
    return joined.replace("with on", "on").replace("with with", "with").replace("with against", "against")


def _ground(rng: random.Random, colour: str) -> str:
    if not colour:
        return ""
    article = "an" if colour[0] in "aeiou" else "a"
    return rng.choice((
        f"on {article} {colour} background",
        f"on {article} {colour} background",
        f"on {colour} background",
        f"with {article} {colour} background",
        f"in front of {article} {colour} background",
        f"against {article} {colour} backdrop",
        f"on {colour}",
    ))  # fmt: skip


def _with_article(rng: random.Random, text: str) -> str:
    article = "an" if text[0] in "aeiou" else "a"
    return _join(rng.choices((article, "", "the", "one", "our"), (6, 2, 1, 0.3, 0.3))[0], text)


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _nothing(rng: random.Random) -> str:
    """Words that ask for nothing in this world, such as a negative prompt's."""
    if rng.random() < 0.15:
        return _gibberish(rng)
    return ", ".join(rng.sample(words.NEGATIVES, rng.randint(1, 8)))


def _gibberish(rng: random.Random) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return " ".join("".join(rng.choices(letters, k=rng.randint(2, 8))) for _ in range(rng.randint(1, 3)))
