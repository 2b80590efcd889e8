"""Texts for comparison with the original models: many scripts, many lengths, and what tokenizers stumble over."""

from __future__ import annotations

from typing import Final

_SENTENCES: Final = [
    "A cat sleeps on the warm windowsill.",
    "The kitten is napping in the sun.",
    "Interest rates went up again, so borrowing money costs more.",
    "How do I bake sourdough bread at home?",
    "The committee's report was published on 3 March 2021; it runs to 1,204 pages.",
    "def add(a, b):\n    return a + b  # the sum",
    "SELECT name FROM users WHERE age >= 18 ORDER BY name;",
    "https://example.org/path?query=1&lang=de#part",
    "Die Katze schläft auf der Fensterbank.",
    "Straße, Größe, Übermut und Ärger: alles über Äpfel.",
    "Le chat dort sur le rebord de la fenêtre ; il fait très chaud.",
    "¿Dónde está la biblioteca más cercana?",
    "O gato está a dormir, e ninguém o acorda.",
    "Kedi pencerenin kenarında uyuyor; İstanbul'da hava güneşli.",
    "Mèo đang ngủ trên bậu cửa sổ ấm áp.",
    "Кошка спит на тёплом подоконнике.",
    "Котка спить на теплому підвіконні, а їжак — під яблунею.",
    "Η γάτα κοιμάται στο περβάζι του παραθύρου.",
    "החתולה ישנה על אדן החלון.",
    "القطة تنام على حافة النافذة الدافئة.",
    "گربه روی لبهٔ پنجره می‌خوابد.",
    "बिल्ली खिड़की पर सो रही है।",
    "বিড়ালটি জানালার ধারে ঘুমাচ্ছে।",
    "பூனை ஜன்னல் ஓரத்தில் தூங்குகிறது.",
    "แมวนอนหลับอยู่บนขอบหน้าต่าง",
    "猫在温暖的窗台上睡觉。",
    "貓咪在窗邊睡著了，外面下著雨。",
    "猫は窓辺で眠っている。カタカナとひらがな。",
    "고양이가 창턱에서 자고 있다.",
    "კატა ფანჯრის რაფაზე სძინავს.",
    "Կատուն քնած է պատուհանի գոգին:",
    "ድመቷ በመስኮቱ ጫፍ ላይ ትተኛለች።",
    "🐈💤 on the windowsill 👩‍👩‍👧‍👦 flags 🇩🇪🇯🇵 and keycaps 1️⃣",
    "e\u0301 is é, A\u030a is Å, and ﬁ is a ligature",
    "zero\u200bwidth, soft\u00adhyphen, non\u00a0breaking, bom\ufeff",
    "tabs\tand\r\nnew lines\n\n\n   and    spaces   ",
    "ALL CAPS SHOUTING!!! ... and ??? — “quotes” ‘inside’ «others»",
    "x",
    "!",
    "1234567890 3.14159 1e-9 0xDEADBEEF",
    "[CLS] and [SEP] spelled out, and <|endoftext|> and <|im_end|> too",
    "math: ∑ᵢ xᵢ² ≤ ∞, α→β, 5 °C ± 0.1 %, ½ + ⅓",
    "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichenhersteller" * 2,
    "a" * 150,
]


def _long(n_words: int, start: int) -> str:
    words = " ".join(_SENTENCES[:31]).split()
    return " ".join(words[(start + 7 * i) % len(words)] for i in range(n_words))


# One text for each of many lengths, past the 256 tokens at which MiniLM truncates.
TEXTS: Final = [*_SENTENCES, *(_long(n, n) for n in (3, 10, 25, 60, 90, 110, 130, 150, 200, 400))]
