// Package dns gives github.com/grandcat/zeroconf v1.0.0 the message format of package
// firmware/discovery/dns under the names of github.com/miekg/dns.
package dns

import "github.com/cloudrest/cloudrest/firmware/discovery/dns"

const (
	ClassINET = dns.ClassINET
	TypeA     = dns.TypeA
	TypeAAAA  = dns.TypeAAAA
	TypePTR   = dns.TypePTR
	TypeSRV   = dns.TypeSRV
	TypeTXT   = dns.TypeTXT
)

type (
	Msg       = dns.Msg
	Question  = dns.Question
	RR        = dns.RR
	RR_Header = dns.RR_Header
	A         = dns.A
	AAAA      = dns.AAAA
	PTR       = dns.PTR
	SRV       = dns.SRV
	TXT       = dns.TXT
)
