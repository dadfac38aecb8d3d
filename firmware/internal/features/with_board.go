//go:build !no_board

package features

// Board: button, LED, and the unique ID of a flash chip on SPI.
const Board = true
