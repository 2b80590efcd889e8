"""Texts that settings are measured on where the user gives none: as long as queries and documents are, in many
languages. Written for this project. Their content does not matter, their length in tokens does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edge_embed.engine.trial import Call, Work
from edge_embed.engine.tune import Profile

QUERIES: Final = (
    "how do bees find their way home?",
    "symptoms of iron deficiency",
    "wie lange muss ein Sauerteig ruhen?",
    "quelle est la différence entre un virus et une bactérie ?",
    "cheapest way to heat a greenhouse in winter",
    "¿cuándo se fundó la ciudad de Cartagena?",
    "как починить цепь велосипеда",
    "日本の山で一番高いのは何ですか",
    "怎样给小提琴调音",
    "كم يبلغ عمق البحر الميت؟",
    "python read csv without header",
    "a doença que dizimou os vinhedos no século XIX",
    "क्या चाय में कैफीन होता है",
    "who wrote the first program, and for which machine",
    "무릎 통증에 좋은 운동",
    "does vitamin D lower the risk of fractures in healthy adults?",
    "jaka jest stolica Mongolii",
    "hoe laat vertrekt de laatste trein naar Utrecht",
    "effects of interest rates on small banks since 2010",
    "lighthouse keeper novel set in Brittany",
    "Tại sao bầu trời có màu xanh?",
    "kışın hangi sebzeler ekilir",
    "error: connection refused while connecting to upstream",
    "old maps of the Danube delta",
)

PARAGRAPHS: Final = (
    "Honey bees return to the hive by the position of the sun, by landmarks, and over the last metres by smell. A "
    "worker that has found a good meadow dances on the comb: the angle of her run to the vertical is the angle of "
    "the flight to the sun, and the length of the run tells how far it is.",
    "Die Brücke wurde 1898 aus Stahl gebaut und 1945 gesprengt. Drei Jahre später stand auf den alten Pfeilern ein "
    "hölzerner Steg, der bis zur Eröffnung des heutigen Bauwerks den gesamten Verkehr der Stadt trug.",
    "Le phylloxéra, un insecte venu d'Amérique, a détruit en trente ans la plus grande partie des vignobles français. "
    "On les a sauvés en greffant les cépages du pays sur des racines américaines, qui lui résistent.",
    "We measured the expression of four genes in 212 samples and found no association with survival (hazard ratio "
    "1.04, p = 0.41), in contrast to an earlier and smaller study. Age and stage at diagnosis explained most of the "
    "variance; adding the four genes to the model did not improve its predictions on the held-out half of the data.",
    "El agua del lago es tan salada que nadie se hunde en ella. Cada año baja un metro, porque los ríos que lo "
    "alimentaban riegan hoy los campos, y en la orilla se abren hoyos donde el agua dulce disuelve la sal.",
    "def moving_average(values, width):\n    total = 0.0\n    for i, value in enumerate(values):\n"
    "        total += value\n        if i >= width:\n            total -= values[i - width]\n"
    "        if i >= width - 1:\n            yield total / width",
    "Цепь велосипеда смазывают после каждой поездки под дождём. Сначала её протирают сухой тряпкой, потом наносят по "
    "капле масла на каждый ролик и через несколько минут снимают лишнее, чтобы к ней не прилипала пыль.",
    "富士山は標高三千七百七十六メートルで、日本で最も高い山である。最後に噴火したのは一七〇七年で、江戸の町にも灰が"
    "降り積もったと当時の日記は伝えている。",
    "小提琴的四根弦从低到高依次是G、D、A、E，相邻两弦相差纯五度。调音时先以A弦对准音叉，再用双音比较其余各弦，"
    "弦轴用于粗调，微调器用于细调。",
    "The central bank left its rate unchanged on Thursday, as most analysts had expected. Small lenders, whose "
    "deposits are costlier than those of their larger rivals, have seen their margins shrink since 2010; the report "
    "counts 312 mergers among them, and warns that branches in rural districts are the first to close.",
    "يقع البحر الميت في أخفض بقعة على سطح اليابسة، وتزيد ملوحته على ملوحة المحيط عشر مرات، ولذلك لا تعيش فيه الأسماك.",
    "Bring the flour, the salt and the butter together with your fingertips, add three spoons of cold water, and let "
    "the dough rest in the fridge for half an hour. Roll it out between two sheets of paper, line the tin, prick the "
    "base with a fork and bake it blind for twelve minutes at 190 degrees.",
    "चाय की पत्तियों में कैफीन कॉफ़ी से अधिक होता है, परंतु एक प्याले में कम घुलता है, इसलिए चाय हल्की लगती है।",
    "To reset the router, hold the small button on its back for ten seconds, until both lights blink. Connect a "
    "computer by cable, open 192.168.0.1 and choose a new password; the old one is gone, as are the forwarded ports.",
)

_DOCUMENTS: Final = 96  # built of one to four paragraphs
_TOGETHER: Final = 5  # documents that a reranker compares with one query of the profile's queries
TEXTS_MOST: Final = 256  # of the user's


def work(profile: Profile, own: Sequence[str] | None, *, pairs: bool) -> Work:
    """The calls that stand for a profile.

    Queries come one at a time, as people type them; documents come all together.

    Args:
        profile: ``queries``, ``documents``, or both.
        own: the user's texts. They are both parts of ``mixed``: the shortest quarter one at a time, all together.
        pairs: whether the model is a reranker: each query then has a few documents, and the first one has all.
    """
    queries, documents = list(QUERIES), list(_built_in())
    if own is not None:
        documents = list(dict.fromkeys(own))[:TEXTS_MOST]
        queries = sorted(documents, key=len)[: -(-len(documents) // 4)] if profile == "mixed" else documents
    parts: dict[str, tuple[Call, ...]] = {}
    if profile != "documents":
        if pairs:
            groups = [documents[i : i + _TOGETHER] for i in range(0, len(documents), _TOGETHER)]
            parts["queries"] = tuple(
                Call(tuple(group), "query", QUERIES[i % len(QUERIES)]) for i, group in enumerate(groups)
            )
        else:
            parts["queries"] = tuple(Call((text,), "query") for text in queries)
    if profile != "queries":
        parts["documents"] = (Call(tuple(documents), "document", QUERIES[0]),)
    return Work(parts)


def _built_in() -> list[str]:
    """Documents that begin differently, so that only a prompt is common to them."""
    n = len(PARAGRAPHS)
    return [
        f"{index + 1}. " + "\n".join(PARAGRAPHS[(5 * index + step) % n] for step in range(1 + index % 4))
        for index in range(_DOCUMENTS)
    ]
