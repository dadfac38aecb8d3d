// Package pairing decides who on the LAN controls the device (D11). A client pairs once, in a window of a
// minute that a person opened or with a secret that a person handed over, and gets a token; from then on the
// token opens the maker's service (Guard) and the management below /.cloudrest/v1/ (Handler).
//
// What can happen in a window is bounded and seen: a 6-digit code bound to the TLS session of the asking client
// (tether/trust) shows a man in the middle, one success closes the window, two askers where nobody confirms
// close it for both, and all of it is kept as security events. Tokens are stored as SHA-256 only.
//
// The package leaves to others: TLS and its certificate (lancert, proxy/edge), the button and the LED (board,
// through Open and OnWindow), the page and the command line that speak the HTTP API, and access over the tether,
// which the relay decides; requests that came that way are marked with Remote, those of the control socket
// with Local. Wire formats: tether/SPEC.md, "LAN trust and pairing".
package pairing
