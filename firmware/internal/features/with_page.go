//go:build !no_page

package features

// Page: the device's own web page, and QR codes.
const Page = true
