// Command guard runs in the image. After an update it decides whether the new version
// stays: it starts on trial, in a boot that the next boot does not repeat, and stays only
// when the gateway and the maker's service answer. Otherwise guard restarts the device,
// which brings the version before back; so does a power cut, a crash of the kernel or a
// hang that the hardware watchdog ends.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/onboard/device"
	"github.com/cloudrest/cloudrest/tools/cmd/piimage/onboard/gokr"
)

// done tells gokrazy not to start the program again.
const done = 125

// What guard prints, for piimage update.
const (
	saysSlot   = "slot "
	saysNormal = "state normal"
	saysTrial  = "state trial"
	saysKept   = "state kept"
	saysBack   = "state going-back"
)

const again = 2 * time.Second

func main() {
	if err := run(); err != nil {
		fmt.Println("guard:", err)
		time.Sleep(again)
		os.Exit(1) // gokrazy starts it again
	}
	os.Exit(done)
}

func run() error {
	info, err := device.ReadInfo(device.InfoFile)
	if err != nil {
		return err
	}
	here, err := gokr.FindDisk()
	if err != nil {
		return err
	}
	fmt.Println(saysSlot + here.Slot)
	if !here.Trial {
		fmt.Println(saysNormal)
		if err := device.Folder.Started(info.Sequence); err != nil {
			return err
		}
		return here.Tidy()
	}
	fmt.Println(saysTrial)
	if err := device.Wait(context.Background(), info.Trial, device.StatusURL); err != nil {
		fmt.Println(saysBack, "because", err)
		if err := device.Folder.GiveUp(err); err != nil {
			fmt.Println("guard:", err)
		}
		return gokr.Ask(gokr.Reboot)
	}
	// Init still believes in the old root, as the kernel was told: for it the other one is
	// the one that runs. One more restart ends that.
	if err := gokr.Ask(gokr.Switch); err != nil {
		return err
	}
	if err := device.Folder.Settle(info.Sequence); err != nil {
		return err
	}
	fmt.Println(saysKept)
	return gokr.Ask(gokr.Reboot)
}
