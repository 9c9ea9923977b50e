"""The sticker world: pictures of one to four everyday things, as drawn by several artists.

The little world of shapes has one renderer, so a model of it can only be tested on other arrangements of the same
six shapes. Here the same 128 things (a dog, a pizza, a tram) come from several artists, who share no line of their
drawings. A model learns from some of them and is asked about the drawings of one that it has never seen.

    atlas.py          the drawings: things, artists, and who is for training
    scenes.py         pictures that know what they show
    tasks.py          prompts and answers about them
    sticker_model.py  the model's sizes and its tokenizer
    recipe.py         how it is trained
    evaluation.py     how good it is
    card.py           its curves and its commonest mistakes, drawn
"""
