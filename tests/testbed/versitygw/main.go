// An S3 server over a folder: versitygw with its POSIX backend alone; the whole of it has the clients of other stores.
//
// versitygw ADDRESS FOLDER METADATA ACCOUNTS: where to listen, what holds the buckets, their metadata and the accounts.
// The root account's keys are in ROOT_ACCESS_KEY and ROOT_SECRET_KEY.
package main

import (
	"context"
	"log"
	"os"

	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
)

func main() {
	if len(os.Args) != 5 {
		log.Fatal("usage: versitygw ADDRESS FOLDER METADATA ACCOUNTS")
	}
	metadata, err := meta.NewSideCar(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	backend, err := posix.New(os.Args[2], metadata, posix.PosixOpts{SideCarDir: os.Args[3]})
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(embedgw.RunVersityGW(context.Background(), backend, &embedgw.Config{
		RootUserAccess:    os.Getenv("ROOT_ACCESS_KEY"),
		RootUserSecret:    os.Getenv("ROOT_SECRET_KEY"),
		Ports:             []string{os.Args[1]},
		IAMDir:            os.Args[4],
		IAMCacheDisable:   true, // at intervals of 0 seconds, which is the default here, its accounts are looked through without end
		KeepAlive:         true,
		MaxConnections:    1000,
		MaxRequests:       1000,
		MultipartMaxParts: 10000,
		AccessLog:         "stdout",
		Quiet:             true,
	}))
}
