module github.com/sirocco-run/sirocco/sdk/go

go 1.26.3
