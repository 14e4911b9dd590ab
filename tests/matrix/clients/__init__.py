"""Official SDKs, each a process that carries out steps. Those of TypeScript are in tests/parts/clients."""
