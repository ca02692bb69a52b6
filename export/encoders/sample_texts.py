"""Ordinary texts on which exports are compared with their sources: news, reviews, questions, names, numbers."""

from __future__ import annotations

PAIR_TASKS = frozenset({"question-answering", "reranking", "zero-shot-classification"})
"""Tasks that read two texts at once."""

SAMPLE_TEXTS = (
    "Marie Curie was born in Warsaw and worked in Paris, where she discovered radium.",
    "The film is far too long, and its ending makes no sense at all.",
    "Who wrote the first computer program?",
    "Shares of the company fell by 4.7 percent on Tuesday after it cut its forecast for the year.",
    "I love this little cafe: friendly people, fresh bread, and the best coffee in town!",
    "The river Thames flows through London, Oxford and Reading before it reaches the North Sea.",
    "Please send the signed contract to Mr. John Smith, 221 Baker Street, by March 31.",
    "What is the capital of Ghana?",
    "Accra is the capital and largest city of Ghana, with about two million people.",
    "The battery died after three weeks, and nobody answered my letters.",
    "In 1969 Neil Armstrong became the first person to walk on the Moon.",
    "How do I reset my password if I no longer have access to my old phone?",
    "Heavy rain is expected along the coast tonight, with winds of up to 90 kilometres an hour.",
    "Alan Turing studied mathematics at King's College, Cambridge.",
    "It was neither good nor bad, just forgettable.",
    "The committee voted 7 to 2 in favour of the new library, which will open next autumn.",
    "Toyota and Panasonic will build a factory for batteries in North Carolina.",
    "She opened the window, looked at the snow, and decided to stay in bed.",
    "A balanced diet, regular sleep and a little exercise lower the risk of heart disease.",
    "Where can I buy tickets for the concert in Berlin on Friday?",
    "The court found that the bank had misled its customers for more than ten years.",
    "Don't miss it: a warm, funny and deeply human story with a brilliant cast.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "The parcel arrived two days early, and everything in it was exactly as described.",
)
