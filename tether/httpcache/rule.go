package httpcache

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Rule is what the maker of a device says about the answers under a path, for a service
// that does not say it itself.
type Rule struct {
	// Pattern is a path, without query: exact, or with a "*" at the end for everything that
	// begins so, or as one whole segment for any one segment: "/zones/*/state".
	Pattern string

	Never   bool          // such requests pass the cache by
	Private bool          // answers are for the principal that asked
	Public  bool          // answers with a TTL are for everybody, whoever asked
	TTL     time.Duration // an answer 200 that states no lifetime is fresh for so long; 0: no
	Stale   time.Duration // an answer may be used for so long after its lifetime when the service fails; 0: as it says
}

// MaxRuleTime bounds the times of a Rule.
const MaxRuleTime = 365 * 24 * time.Hour

// ParseRule reads a rule such as "/zones/* ttl=5s stale=1m private".
func ParseRule(text string) (r Rule, err error) {
	words := strings.Fields(text)
	if len(words) < 2 {
		return r, fmt.Errorf("rule %q: want a path and what holds for it, such as \"/zones/* ttl=5s\"", text)
	}
	r.Pattern = words[0]
	for _, w := range words[1:] {
		name, value, has := strings.Cut(w, "=")
		var to *time.Duration
		switch {
		case w == "never":
			r.Never = true
		case w == "private":
			r.Private = true
		case w == "public":
			r.Public = true
		case name == "ttl" && has:
			to = &r.TTL
		case name == "stale" && has:
			to = &r.Stale
		default:
			return r, fmt.Errorf("rule %q: %q is not known: want ttl=5s, stale=1m, private, public or never", text, w)
		}
		if to != nil {
			if *to, err = time.ParseDuration(value); err != nil || *to <= 0 {
				return r, fmt.Errorf("rule %q: %s is %q, want a time such as 5s", text, name, value)
			}
		}
	}
	if err := r.Validate(); err != nil {
		return r, fmt.Errorf("rule %q: %w", text, err)
	}
	return r, nil
}

// Validate reports every mistake at once.
func (r Rule) Validate() error {
	var errs []error
	if !strings.HasPrefix(r.Pattern, "/") || strings.ContainsAny(r.Pattern, "?# ") {
		errs = append(errs, fmt.Errorf("path %q, want one that begins with / and has no query", r.Pattern))
	}
	for s := range strings.SplitSeq(strings.TrimSuffix(r.Pattern, "*"), "/") {
		if strings.Contains(s, "*") && s != "*" {
			errs = append(errs, fmt.Errorf("path %q: a * is a whole segment, or the end", r.Pattern))
			break
		}
	}
	if r.Never && (r.Private || r.Public || r.TTL != 0 || r.Stale != 0) {
		errs = append(errs, errors.New("never does not go with anything else"))
	}
	if r.Private && r.Public {
		errs = append(errs, errors.New("private and public at once"))
	}
	if r.TTL < 0 || r.TTL > MaxRuleTime || r.Stale < 0 || r.Stale > MaxRuleTime {
		errs = append(errs, fmt.Errorf("a time is negative or above %v", MaxRuleTime))
	}
	return errors.Join(errs...)
}

// Match reports whether the rule is about a path.
func (r *Rule) Match(path string) bool {
	p := r.Pattern
	for {
		i := strings.IndexByte(p, '*')
		switch {
		case i < 0:
			return p == path
		case !strings.HasPrefix(path, p[:i]):
			return false
		case i == len(p)-1:
			return true
		}
		path, p = path[i:], p[i+1:]
		end := strings.IndexByte(path, '/')
		if end <= 0 {
			return false
		}
		path = path[end:]
	}
}

// FindRule returns the first rule about a path, or nil.
func FindRule(rules []Rule, path string) *Rule {
	for i := range rules {
		if rules[i].Match(path) {
			return &rules[i]
		}
	}
	return nil
}
