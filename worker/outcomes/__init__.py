"""Outcomes of runs, sent to forges, by mail and to chats: the settings, the texts, the connections, the loop."""
