"""The shared language of Millrace: messages, topics, rules that several services must agree on, errors, names."""
