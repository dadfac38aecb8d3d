// Package boltdb is the store of a relay on one machine: which devices exist and the
// key each of them proved first, what they say of themselves, when they were last
// there, and for each a bounded ring of notifications that outlives the process. One
// bbolt file holds it all; the scaled relay keeps the same in SQL.
//
// Every write goes through one goroutine, Run, which commits what has gathered in one
// transaction: a thousand devices that notify at once cost one fsync, not a thousand.
// Nothing is acknowledged before its transaction is on disk.
package boltdb
