package pairing

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudrest/cloudrest/tether/trust"
)

// TestNoWayUp: no sequence of calls by a stranger, a guest or a member, who may work together and know whatever the
// device answered them, ends with one of them as owner, or with a right that their role does not have, while an owner
// uses the device as owners do.
func TestNoWayUp(t *testing.T) {
	cs := connection(t)
	for seed := range uint64(12) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 7))
			d := open(t, &memory{}, func(c *Config) { c.Label = "" })
			owner, ownerID := d.pairAs(t, Owner, cs)
			member, memberID := d.pairAs(t, Member, cs)
			guest, guestID := d.pairAs(t, Guest, cs)
			tokens := []string{"", guest, member}     // what the attackers hold
			words := []string{ownerID, memberID, "x"} // ids and keys they have seen
			pick := func(list []string) string { return list[rnd.IntN(len(list))] }
			learn := func(g reply) {
				if g.body.Token != "" {
					tokens = append(tokens, g.body.Token)
				}
				for _, w := range strings.FieldsFunc(g.text, func(r rune) bool { return strings.ContainsRune(`"{}[],:\ .#`, r) }) {
					if len(w) == 2*idBytes || len(w) == 22 {
						words = append(words, w)
					}
				}
				words = words[max(0, len(words)-12):]
			}
			roles := []string{"owner", "member", "guest", ""}
			nonces := map[string]string{}
			attack := func() {
				c := call{token: pick(tokens), from: fmt.Sprintf("192.0.2.%d:1", rnd.IntN(4)), tls: cs}
				if rnd.IntN(4) == 0 {
					c.cookie, c.token = c.token, ""
					c.header = http.Header{"Sec-Fetch-Site": {"same-origin"}}
				}
				c.remote = rnd.IntN(8) == 0
				id, role := pick(words), pick(roles)
				var g reply
				switch rnd.IntN(16) {
				case 0:
					g = d.do("POST", "pair", fmt.Sprintf(`{"name":"x","role":%q}`, role), c)
				case 1:
					first, second, _ := commitment("x")
					g = d.do("POST", "pair", first, c)
					nonces[g.body.Request] = second
				case 2:
					for key, second := range nonces {
						learn(d.do("POST", "pair/"+key, second, c))
					}
					clear(nonces)
					return
				case 3:
					g = d.do("POST", "pair/window", fmt.Sprintf(`{"role":%q}`, role), c)
				case 4:
					g = d.do("DELETE", "pair/window", "", c)
				case 5:
					g = d.do("GET", "pair/requests", "", c)
				case 6, 7:
					g = d.do("POST", "pair/"+id+"/approve", fmt.Sprintf(`{"role":%q}`, role), c)
				case 8:
					c.token = "" // the key alone
					for _, w := range words {
						if a, err := d.find(w); err != nil || a.step != stepWaiting { // else it would wait
							learn(d.do("GET", "pair/"+w, "", c))
						}
					}
					return
				case 9:
					g = d.do("PATCH", "clients/"+id, fmt.Sprintf(`{"role":%q,"expires":null}`, role), c)
				case 10:
					g = d.do("DELETE", "clients/"+id, "", c)
				case 11:
					g = d.do("POST", "invitations", fmt.Sprintf(`{"role":%q}`, role), c)
				case 12:
					g = d.do("GET", pick([]string{"clients", "session", "security", "pair"}), "", c)
				case 13:
					g = d.do("POST", "session", fmt.Sprintf(`{"token":%q}`, c.token), c)
				case 14:
					g = d.do("POST", "pair", fmt.Sprintf(`{"name":"x","secret":%q,"role":"owner"}`, id), c)
				case 15:
					time.Sleep(time.Duration(rnd.IntN(40)) * time.Second)
					return
				}
				learn(g)
			}
			for range 400 {
				attack()
				switch rnd.IntN(12) { // the owner, who does nothing wrong
				case 0:
					d.do("POST", "pair/window", `{"role":"guest"}`, call{token: owner})
				case 1:
					d.do("GET", "pair/requests", "", call{token: owner})
				case 2:
					for _, a := range slices.Clone(d.asks) {
						if a.step == stepWaiting && rnd.IntN(2) == 0 {
							d.do("POST", "pair/"+a.id+"/approve", "", call{token: owner})
						}
					}
				case 3:
					g := d.do("POST", "invitations", `{"role":"owner"}`, call{token: owner}) // for a friend, in a QR code
					if i, err := trust.ParseInvitation(g.body.URL); err == nil && len(i.Secret) < 22 {
						t.Fatalf("the secret %q is short", i.Secret)
					}
				case 4:
					d.do("DELETE", "invitations", "", call{token: owner})
				case 5:
					d.do("PATCH", "clients/"+guestID, `{"name":"y"}`, call{token: owner})
				}
				owners := 0
				for _, c := range d.Clients() {
					if c.Role == Owner {
						owners++
					}
					if (c.ID == ownerID) != (c.Role == Owner) {
						t.Fatalf("seed %d: %+v", seed, c)
					}
				}
				if owners != 1 {
					t.Fatalf("seed %d: %d owners, want the one", seed, owners)
				}
			}
			// What they hold in the end opens nothing for owners.
			for _, token := range tokens {
				for _, what := range [][2]string{{"GET", "security"}, {"POST", "invitations"}, {"PATCH", "clients/" + ownerID}} {
					time.Sleep(time.Hour) // no throttle
					if g := d.do(what[0], what[1], "{}", call{token: token}); g.status != 401 && g.status != 403 {
						t.Fatalf("seed %d: %s %s gives %v", seed, what[0], what[1], g)
					}
				}
				o := &origin{}
				if w := d.guard(o, "POST", "/pumps", bearerOf(token), "198.51.100.1:1"); w.Code == 200 {
					c, _ := ClientOf(o.last.Context())
					if c.Role != Member {
						t.Fatalf("seed %d: %+v writes", seed, c)
					}
				}
			}
			if len(tokens) < 4 {
				t.Logf("seed %d: nobody else paired", seed)
			}
		})
	}
}
