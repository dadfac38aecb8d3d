// Command probe prints its build information; a test links values into it.
package main

import (
	"os"

	"github.com/cloudrest/cloudrest/tether/buildinfo"
)

func main() { os.Stdout.Write(buildinfo.JSON()) }
