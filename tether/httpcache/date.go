package httpcache

import (
	"strings"
	"time"
)

const months = "janfebmaraprmayjunjulaugsepoctnovdec"

// ParseDate reads an HTTP-date in the three formats of RFC 9110 §5.6.7, names in any
// case, and nothing else: a date that is nearly right is not a date. now decides the
// century of the format with two digits.
func ParseDate(s string, now time.Time) (t time.Time, ok bool) {
	comma := strings.IndexByte(s, ',')
	switch {
	case len(s) == 29 && comma == 3: // Sun, 06 Nov 1994 08:49:37 GMT
		if !dayName(s[:3]) || s[4] != ' ' || s[7] != ' ' || s[11] != ' ' || s[16] != ' ' || !strings.EqualFold(s[25:], " GMT") {
			return t, false
		}
		return date(s[12:16], s[8:11], s[5:7], s[17:25])
	case comma >= 6 && len(s) == comma+24: // Sunday, 06-Nov-94 08:49:37 GMT
		d := s[comma+1:]
		if !longDayName(s[:comma]) || d[0] != ' ' || d[3] != '-' || d[7] != '-' || d[10] != ' ' || !strings.EqualFold(d[19:], " GMT") {
			return t, false
		}
		yy, ok := number(d[8:10])
		if !ok {
			return t, false
		}
		year := now.UTC().Year()/100*100 + yy
		if year > now.UTC().Year()+50 {
			year -= 100
		}
		return dateOf(year, d[4:7], d[1:3], d[11:19])
	case len(s) == 24 && comma < 0: // Sun Nov  6 08:49:37 1994
		if !dayName(s[:3]) || s[3] != ' ' || s[7] != ' ' || s[10] != ' ' || s[19] != ' ' {
			return t, false
		}
		day := s[8:10]
		if day[0] == ' ' {
			day = day[1:]
		}
		return date(s[20:], s[4:7], day, s[11:19])
	}
	return t, false
}

func dayName(s string) bool {
	switch strings.ToLower(s) {
	case "mon", "tue", "wed", "thu", "fri", "sat", "sun":
		return true
	}
	return false
}

func longDayName(s string) bool {
	switch strings.ToLower(s) {
	case "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday":
		return true
	}
	return false
}

func date(year, month, day, clock string) (time.Time, bool) {
	y, ok := number(year)
	if !ok {
		return time.Time{}, false
	}
	return dateOf(y, month, day, clock)
}

func dateOf(year int, month, day, clock string) (t time.Time, ok bool) {
	m := strings.Index(months, strings.ToLower(month))
	d, ok0 := number(day)
	if m < 0 || m%3 != 0 || !ok0 || clock[2] != ':' || clock[5] != ':' {
		return t, false
	}
	h, ok1 := number(clock[:2])
	mi, ok2 := number(clock[3:5])
	sec, ok3 := number(clock[6:])
	if !ok1 || !ok2 || !ok3 || h > 23 || mi > 59 || sec > 60 {
		return t, false
	}
	t = time.Date(year, time.Month(m/3+1), d, h, mi, min(sec, 59), 0, time.UTC) // a leap second is the second before it
	return t, t.Day() == d                                                      // no 31st of April
}

// number reads digits only.
func number(s string) (n int, ok bool) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n, s != ""
}
