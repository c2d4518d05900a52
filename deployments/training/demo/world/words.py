"""The words that captions are made of: every name of a thing in the demo world, plain and in the language of ads."""

from __future__ import annotations

from typing import Final

NOUNS: Final[dict[str, tuple[str, ...]]] = {
    "cup": ("cup", "cup", "mug", "coffee cup", "teacup", "cup of coffee", "coffee mug"),
    "bottle": ("bottle", "bottle", "perfume bottle", "wine bottle", "water bottle", "flask", "bottle of perfume"),
    "shoe": ("shoe", "shoe", "sneaker", "running shoe", "boot", "sneakers", "shoes"),
    "box": ("box", "box", "gift box", "parcel", "package", "gift", "cardboard box"),
    "phone": ("phone", "phone", "smartphone", "mobile phone", "cell phone", "mobile"),
    "star": ("star", "star", "five pointed star", "star shape"),
    "heart": ("heart", "heart", "love heart", "heart shape"),
    "ring": ("ring", "ring", "diamond ring", "wedding ring", "engagement ring"),
    "person": ("person", "person", "woman", "man", "dancer", "athlete", "model", "figure"),
}
TRADES: Final[dict[str, tuple[str, ...]]] = {
    "cup": ("coffee", "espresso", "tea", "cafe", "coffee shop", "cappuccino", "latte"),
    "bottle": ("perfume", "wine", "fragrance", "juice", "water", "beer", "cosmetics", "shampoo", "soda", "drink"),
    "shoe": ("sneakers", "sneaker", "shoes", "running", "sportswear", "footwear", "sports", "athletic shoes"),
    "box": ("gift", "delivery", "packaging", "shipping", "chocolate", "gifts", "moving", "subscription box"),
    "phone": ("smartphone", "phone", "app", "mobile", "technology", "tech", "electronics", "mobile app", "gadget"),
    "star": ("hotel", "award", "entertainment", "cinema", "five star hotel", "movie", "music", "night club"),
    "heart": ("dating", "charity", "health", "valentine", "dating app", "healthcare", "valentine's day", "love"),
    "ring": ("jewelry", "jewellery", "diamond", "engagement", "jeweler", "wedding", "diamonds"),
    "person": ("fitness", "yoga", "dance", "fashion", "gym", "sportswear"),
}
COLOUR_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "red": ("red", "red", "red", "crimson", "scarlet"),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "cyan": ("cyan", "turquoise", "teal", "light blue"),
    "blue": ("blue", "blue", "blue", "navy", "dark blue"),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink", "pink", "rose"),
    "brown": ("brown",),
    "black": ("black",),
    "gray": ("gray", "grey"),
    "white": ("white",),
}
SIZE_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "small": ("small", "small", "little", "tiny"),
    "medium": ("medium", "medium sized", "medium-sized"),
    "large": ("large", "large", "big", "huge"),
}
POSITION_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "left": ("on the left", "on the left", "at the left", "on the left side", "to the left"),
    "right": ("on the right", "on the right", "at the right", "on the right side", "to the right"),
    "top": ("at the top", "at the top", "on top", "in the upper part", "near the top"),
    "bottom": ("at the bottom", "at the bottom", "in the lower part", "near the bottom"),
    "centre": ("in the center", "in the centre", "in the middle", "centered"),
}
# The server appends these after the prompt when the caller names a style preset.
STYLE_TAILS: Final[dict[str, str]] = {
    "professional": "professional photography, clean composition, business aesthetic",
    "lifestyle": "lifestyle photography, natural lighting, authentic moments",
    "luxury": "luxury photography, premium materials, sophisticated composition",
    "minimalist": "minimalist design, clean lines, simple composition",
    "vintage": "vintage aesthetic, retro styling, classic composition",
    "modern": "modern, contemporary, sleek design",
}
STYLE_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "professional": ("professional", "professional", "business", "corporate"),
    "lifestyle": ("lifestyle", "lifestyle", "natural", "everyday"),
    "luxury": ("luxury", "luxury", "luxurious", "elegant"),
    "minimalist": ("minimalist", "minimalist", "minimal", "simple"),
    "vintage": ("vintage", "vintage", "retro", "old-fashioned"),
    "modern": ("modern", "modern", "contemporary", "sleek"),
}
PIECES: Final = (
    "advertisement", "ad", "advert", "poster", "campaign", "product shot", "banner", "commercial", "advertising image",
    "product photo", "picture", "image", "photo", "flyer", "billboard",
)  # fmt: skip
ADJECTIVES: Final = (
    "premium", "new", "popular", "local", "great", "famous", "stylish", "beautiful", "fresh", "leading", "organic",
    "high-end", "innovative", "trendy", "small-batch", "award-winning", "global",
)  # fmt: skip
COMPANIES: Final = ("brand", "company", "shop", "store", "business", "startup", "product", "label", "service")
FILLERS: Final = (
    "high quality", "4k", "detailed", "studio lighting", "sharp focus", "best quality", "8k", "beautiful lighting",
    "marketing material", "summer sale", "trending", "masterpiece", "highly detailed", "soft light",
    "eye-catching", "for social media",
)  # fmt: skip
NEGATIVES: Final = (
    "blurry", "low quality", "distorted", "ugly", "bad quality", "watermark", "text", "deformed", "noise", "artifacts",
    "cropped", "out of frame", "worst quality", "jpeg artifacts", "duplicate", "amateur", "unprofessional",
    "poor composition", "bad anatomy", "pixelated", "low resolution", "signature", "overexposed",
)  # fmt: skip
VAGUE: Final = ("object", "thing", "item", "product", "something", "shape")
