"""Benchmarks: feedmill beside its peers on the same shards and cores, and its stages one by one.

``python -m benchmarks`` runs every contender in a process of its own, in interleaved rounds (A B C, A B C, …), so that
whatever else the machine does falls on all of them alike. A contender is a module that prints one JSON object; this
package starts it, collects what it says, and compares.
"""
