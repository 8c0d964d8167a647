"""Which training turns any encoder into a cross-lingual clinical retriever?"""
