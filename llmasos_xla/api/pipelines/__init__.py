"""Tasks in one call each: raw text, pictures and sound in, labels, texts and boxes out.

opening    pipeline(task, model): the tasks by name, and what a model's folder brings
brought    labels, tokenizer and reader of pictures: given, learnt, or read from the model's folder
buckets    rows of ids in batches of few lengths, so that few programs serve all texts
text       classification, tokens, words to fill in, sentence embeddings
writing    generation, translation, summaries
pictures   classification, boxes, segmentation
sound      what is said, and whether somebody speaks
"""
