"""What a person looks at: words, tables and pictures."""
