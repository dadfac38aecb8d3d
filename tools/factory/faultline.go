package factory

import (
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Kinds of faults on a connection.
const (
	cutBefore  = iota // nothing reaches the station
	cutWithin         // the request is cut somewhere
	answerLost        // the station has the request, the device gets no answer
	cutKinds
)

const (
	recordHead   = 5                     // bytes before a TLS record (RFC 8446 §5.1)
	recordData   = 23                    // application data
	maxRecords   = 8                     // of the device, before a cut: four requests have about so many
	answerWait   = 50 * time.Millisecond // for the station to work on what it got
	faultyLife   = time.Minute           // of a connection through the faulty line
	proxyMaxOpen = 256
)

// faultyLine is a TCP proxy between devices and station, which breaks a part of the
// connections: in TLS's records it sees how far the device has come.
type faultyLine struct {
	to    string
	part  float64 // of the connections
	cuts  [cutKinds]atomic.Int64
	l     net.Listener
	conns sync.WaitGroup
}

func newFaultyLine(to string, part float64) (*faultyLine, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return &faultyLine{to: to, part: part, l: l}, nil
}

// run passes connections on until ctx is done.
func (f *faultyLine) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { f.l.Close() })
	defer stop()
	slots := make(chan struct{}, proxyMaxOpen)
	for {
		c, err := f.l.Accept()
		if err != nil {
			break
		}
		slots <- struct{}{}
		f.conns.Go(func() {
			f.pass(ctx, c)
			<-slots
		})
	}
	f.conns.Wait()
}

func (f *faultyLine) pass(ctx context.Context, device net.Conn) {
	defer device.Close()
	stop := context.AfterFunc(ctx, func() { device.Close() })
	defer stop()
	device.SetDeadline(time.Now().Add(faultyLife))
	kind, records := -1, 0
	if rand.Float64() < f.part {
		kind, records = rand.IntN(cutKinds), 2+rand.IntN(maxRecords) // the first one ends the handshake
	}
	if kind == cutBefore {
		io.ReadFull(device, make([]byte, recordHead))
		f.cuts[kind].Add(1)
		return
	}
	station, err := net.DialTimeout("tcp", f.to, answerWait*20)
	if err != nil {
		return // it restarts
	}
	defer station.Close()
	station.SetDeadline(time.Now().Add(faultyLife))

	var deaf atomic.Bool // the device does not hear the station any more
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 16<<10)
		for {
			n, err := station.Read(b)
			if err != nil {
				device.Close()
				return
			}
			if !deaf.Load() {
				if _, err := device.Write(b[:n]); err != nil {
					return
				}
			}
		}
	}()
	head := make([]byte, recordHead)
	for {
		if _, err := io.ReadFull(device, head); err != nil {
			break
		}
		body := make([]byte, binary.BigEndian.Uint16(head[3:]))
		if _, err := io.ReadFull(device, body); err != nil {
			break
		}
		if kind >= 0 && head[0] == recordData {
			if records--; records == 0 {
				f.cuts[kind].Add(1)
				if kind == cutWithin {
					station.Write(append(head, body[:len(body)/2]...))
					break
				}
				deaf.Store(true)
				station.Write(append(head, body...))
				time.Sleep(answerWait)
				break
			}
		}
		if _, err := station.Write(append(head[:recordHead:recordHead], body...)); err != nil {
			break
		}
	}
	station.Close()
	<-done
}
