// Package httpcache holds the rules of HTTP caching for a shared cache (RFC 9111), the
// same on the device's gateway and on the relay: may an answer be stored and for whom,
// how long is it fresh, which request may it answer, what makes it valid again, what
// does a write invalidate. It stores nothing, starts nothing and never asks for the time.
// Package shared keeps answers by these rules.
//
// Where the standard leaves a choice, the choice is the one that is never fresher:
//
//   - Conflicting, malformed or negative lifetimes mean stale (§4.2.1).
//   - A lifetime that nobody stated is a tenth of the answer's age at most, and never
//     more than HeuristicMax (§4.2.2).
//   - Answers that set a cookie are not stored at all, though §7.3 would allow it.
//   - Whoever is known by name (a principal) gets only answers of his own, unless the
//     origin says public, s-maxage or must-revalidate (§3.5).
package httpcache
