"""Readers of documents: one file for each kind of file or data set, and one for each record format.

`table` lists them. A kind of file yields records with their numbers; a record format makes a
document, or a conversation to be rendered, of a record.
"""
