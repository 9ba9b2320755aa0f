"""The page of a fleet's controller: hosts, campaigns, what became of a domain, and four buttons.

It shows what the database has and what hosts say, and does to a campaign what a terminal would. It
needs no script: with one, what changes is shown as it does.
"""
