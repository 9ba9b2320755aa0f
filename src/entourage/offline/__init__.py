"""A domain that is off moves to another host: its definition, and no memory.

It is defined there only once nobody can start it here any more, so that no two hosts ever have it.
What the target is to define it keeps on its disk first (a claim), so that it is never lost.
"""
