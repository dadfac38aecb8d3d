package main

import (
	"fmt"
	"regexp"
	"time"
)

// version is one version in the spellings of the package managers. All of them order a
// build after the tag that it follows, and one without any tag before 0.1.
type version struct {
	text string // as git describe gives it
	deb  string // for dpkg and opkg
	apk  string // without the revision "-r1"
}

var described = regexp.MustCompile(`^v(\d+\.\d+\.\d+)(?:-(\d+)-g([0-9a-f]+))?(-dirty)?$`)

func parseVersion(text string, seconds int64) version {
	v := version{text: text}
	m := described.FindStringSubmatch(text)
	switch {
	case m == nil:
		day := time.Unix(seconds, 0).UTC().Format("20060102150405")
		v.deb, v.apk = "0~git"+day, "0_git"+day
	case m[2] == "":
		v.deb, v.apk = m[1], m[1]
	default:
		v.deb, v.apk = fmt.Sprintf("%s+%s.g%s", m[1], m[2], m[3]), fmt.Sprintf("%s_p%s", m[1], m[2])
	}
	return v
}
