// Package nodeclient holds no Go code: beside this file lies a client for the tether in
// JavaScript, written from tether/SPEC.md alone, and the tests that run it against the
// vectors and against the relay's side of this module. It shows that the document is
// enough, and serves as an example for clients in other languages.
package nodeclient
