// The TypeScript SDK of the handshake era, @modelcontextprotocol/sdk 1.x, as a client. Counterparts: ts_lines.mjs, ts2.mjs.

import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { CreateMessageRequestSchema, ElicitRequestSchema, ListRootsRequestSchema } from '@modelcontextprotocol/sdk/types.js';
import { z } from 'zod';

import { Connection, answer, serve } from './ts_lines.mjs';

const SCHEMAS = { 'elicitation/create': ElicitRequestSchema, 'sampling/createMessage': CreateMessageRequestSchema, 'roots/list': ListRootsRequestSchema };
const APPS = { 'io.modelcontextprotocol/ui': { mimeTypes: ['text/html;profile=mcp-app'] } };
const CAPABILITIES = { elicitation: { form: {}, url: {} }, sampling: {}, roots: { listChanged: true }, extensions: APPS };

class Connection1 extends Connection {
    call({ name, arguments: given, meta }, options, hear) {
        const params = { name, arguments: given, ...(Object.keys(meta).length ? { _meta: meta } : {}) };
        return this.client.callTool(params, undefined, { ...options, onprogress: hear });
    }

    raw({ method, params }, options) {
        return this.client.request({ method, params }, z.looseObject({}), options);
    }

    async close() {
        await this.client.transport?.terminateSession();
        await this.client.close();
    }
}

serve(async ({ url, token, capable }, hear) => {
    const client = new Client({ name: 'matrix-ts1', version: '1' }, { capabilities: capable ? CAPABILITIES : {} });
    for (const [method, schema] of Object.entries(capable ? SCHEMAS : {})) {
        client.setRequestHandler(schema, (request) => {
            hear(method, request.params ?? {});
            return answer(method, request.params);
        });
    }
    client.fallbackNotificationHandler = async ({ method, params }) => hear(method, params ?? null);
    const requestInit = token ? { headers: { Authorization: `Bearer ${token}` } } : {};
    const transport = new StreamableHTTPClientTransport(new URL(url), { requestInit });
    await client.connect(transport);
    const about = {
        protocolVersion: transport.protocolVersion,
        capabilities: client.getServerCapabilities(),
        instructions: client.getInstructions(),
    };
    return [new Connection1(client, hear), about];
});
