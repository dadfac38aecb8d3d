package main

import "context"

func discoverLAN(ctx context.Context) <-chan sighting {
	c := make(chan sighting)
	context.AfterFunc(ctx, func() { close(c) })
	return c
}
