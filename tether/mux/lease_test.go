package mux_test

