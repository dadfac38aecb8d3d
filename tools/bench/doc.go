// Package bench has no code of its own: each folder beside it is a program that measures
// one thing, and "make bench" runs them all. README.md tells how to read their tables. The
// test here makes small runs of them, to see that they work; it judges no figure.
package bench
