// Package shared is a shared HTTP cache in memory: a layer in front of whoever answers
// requests, that keeps answers by the rules of package httpcache and gives them out
// again. The device's gateway and the relay both use it, each with its own policy in
// Config.
//
// What it promises besides RFC 9111:
//
//   - Memory: entries, answers on their way in, and all that belongs to them are counted,
//     and together stay below Config.MaxBytes; the least recently used goes first. A
//     body that is being sent to a slow client may outlive its entry.
//   - Reads after writes: a write's answer is released only after every stored answer of
//     its targets is gone, and an answer whose request began before that is neither
//     stored nor given to others.
//   - Principals: an answer that belongs to one principal is never given to another, nor
//     to anybody unknown.
//   - What cannot be stored costs nothing: event streams and upgrades pass at once, long
//     bodies are not collected, and only complete bodies are kept.
//
// Targets that are not written in normal form (httpcache.Plain) are never stored; a write
// to one makes everything in its space stale.
package shared
