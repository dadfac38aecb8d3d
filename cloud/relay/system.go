package relay

// fallbackMemory is what the machine is taken to have when it does not say, in bytes.
const fallbackMemory = 1 << 30
