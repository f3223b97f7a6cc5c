"""Our engine behind HTTP: what OpenAI's clients ask, with the token ids and versions that training needs."""
