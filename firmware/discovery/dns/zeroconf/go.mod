// build.sh puts this module in the place of github.com/miekg/dns when it builds for MIPS.
module github.com/miekg/dns

go 1.26
