// The TypeScript SDK of both eras, @modelcontextprotocol/client 2.x, as a client: `mode` of a connection is auto or
// legacy. Counterparts: ts_lines.mjs, ts1.mjs.

import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { z } from 'zod';

import { Connection, answer, serve } from './ts_lines.mjs';

const APPS = { 'io.modelcontextprotocol/ui': { mimeTypes: ['text/html;profile=mcp-app'] } };
const CAPABILITIES = { elicitation: { form: {}, url: {} }, sampling: {}, roots: { listChanged: true }, extensions: APPS };
const ASKED = ['elicitation/create', 'sampling/createMessage', 'roots/list'];

class Connection2 extends Connection {
    call({ name, arguments: given, meta, level }, options, hear) {
        const all = { ...meta, ...(level ? { 'io.modelcontextprotocol/logLevel': level } : {}) };
        const params = { name, arguments: given, ...(Object.keys(all).length ? { _meta: all } : {}) };
        return this.client.callTool(params, { ...options, onprogress: hear });
    }

    raw({ method, params }, options) {
        return this.client.request({ method, params }, z.looseObject({}), options);
    }

    // What is honoured. A second one takes the first one's place, as there is no changing a filter.
    async listen({ filter }) {
        await this.unlisten();
        this.listening = await this.client.listen(filter);
        return this.listening.honoredFilter;
    }

    async unlisten() {
        await this.listening?.close();
        this.listening = undefined;
    }

    async close() {
        await this.unlisten();
        await this.client.transport?.terminateSession?.();
        await this.client.close();
    }
}

serve(async ({ url, token, capable, mode }, hear) => {
    const options = { capabilities: capable ? CAPABILITIES : {}, versionNegotiation: { mode } };
    const client = new Client({ name: 'matrix-ts2', version: '1' }, options);
    for (const method of capable ? ASKED : []) {
        client.setRequestHandler(method, (request) => {
            hear(method, request.params ?? {});
            return answer(method, request.params);
        });
    }
    client.fallbackNotificationHandler = async ({ method, params }) => hear(method, params ?? null);
    const requestInit = token ? { headers: { Authorization: `Bearer ${token}` } } : {};
    await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit }));
    const about = {
        protocolVersion: client.getNegotiatedProtocolVersion(),
        capabilities: client.getServerCapabilities(),
        instructions: client.getInstructions(),
    };
    return [new Connection2(client, hear), about];
});
