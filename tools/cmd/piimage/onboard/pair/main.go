// Command pair runs in the image when somebody with the update password asks for it: it
// prints an invitation that pairs one client. That is how the first owner gets in where
// the device has no button.
package main

import (
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
)

// once tells gokrazy not to start the program again.
const once = 125

func main() {
	// The log keeps what earlier runs printed: the marks tell the runs apart.
	mark := rand.Text()
	fmt.Println("-- begin", mark)
	cmd := exec.Command("/user/cloudrestd", append([]string{"pair", "--invite"}, os.Args[1:]...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	if err := cmd.Run(); err != nil {
		fmt.Println("pair:", err)
	}
	fmt.Println("-- end", mark)
	os.Exit(once)
}
