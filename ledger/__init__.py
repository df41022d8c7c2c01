"""The pure core of the books: state x event -> outcome + postings. Read books.py, then decide.py."""
