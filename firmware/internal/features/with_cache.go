//go:build !no_cache

package features

// Cache: answers are stored and given out again.
const Cache = true
