"""What replies and systems are like: a metric is a function here, from questions and answers to numbers."""
